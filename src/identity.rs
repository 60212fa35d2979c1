//! Who this agent is: host name, address, the random id of the installation; and the token that opens its admin pages.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::Path,
};

use crate::{
    model::Host,
    os,
    settings::{self, Ip},
};

/// Shorter tokens could be guessed; somebody who brings an own one has to bring so much.
const SHORTEST_TOKEN: usize = 32;

/// What was found, and what is to be said about it in the log.
pub struct Found {
    pub host: Host,
    pub warnings: Vec<String>,
}

/// Reads or makes what identifies this agent. `data_dir`: none where no state is kept; then there is no instance.
pub fn find(agent: &settings::Agent, etcd: &[String], data_dir: Option<&Path>) -> io::Result<Found> {
    let mut warnings = Vec::new();
    // A name is not looked up here: a start must not hang on a name server.
    let literal = etcd.first().and_then(|endpoint| bare(endpoint).parse().ok());
    let route = literal.and_then(source_towards).or_else(default_route);
    let (ip, doubt) = choose(&agent.ip, route, &interfaces());
    warnings.extend(doubt);
    let instance = match data_dir {
        Some(dir) => {
            let (instance, news) = instance(&dir.join("instance"), &os::machine_id())?;
            warnings.extend(news);
            instance
        }
        None => String::new(),
    };
    Ok(Found {
        host: Host {
            agent_id: agent.id.clone(),
            group: agent.group.clone(),
            hostname: os::hostname(),
            ip,
            instance,
        },
        warnings,
    })
}

/// Looks, again and again, which address to register in etcd.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub wanted: Ip,
    pub etcd: Vec<String>,
}
impl Addresses {
    /// Nobody else reaches it.
    pub fn etcd_is_here(&self) -> bool {
        self.etcd.iter().all(|one| is_loopback(one))
    }
    /// Or why there is none to register now. Blocks, for name servers.
    pub fn look(&self) -> Result<IpAddr, String> {
        if self.etcd.is_empty() {
            // This host is on its own, and its jobs stay its own when its address changes.
            return Ok(Ipv4Addr::LOCALHOST.into());
        }
        let first = self.etcd.first().map(|endpoint| bare(endpoint)).unwrap_or_default();
        let towards = first.to_socket_addrs().ok().and_then(|mut all| all.next());
        let route = towards.and_then(source_towards).or_else(default_route);
        register(&self.wanted, route, &interfaces(), self.etcd_is_here())
    }
}
/// The rule: what others cannot reach is not registered where others look.
fn register(
    wanted: &Ip,
    route: Option<IpAddr>,
    interfaces: &[(String, IpAddr)],
    etcd_is_here: bool,
) -> Result<IpAddr, String> {
    let (ip, doubt) = choose(wanted, route, interfaces);
    match doubt {
        Some(doubt) => Err(doubt
            .rsplit_once(", using")
            .map_or(doubt.clone(), |(doubt, _)| doubt.to_owned())),
        None if ip.is_loopback() && !etcd_is_here => Err(format!(
            "found no address but {ip}, and etcd is elsewhere: waiting for a network"
        )),
        None => Ok(ip),
    }
}
fn bare(endpoint: &str) -> &str {
    let bare = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"));
    bare.unwrap_or(endpoint)
}
fn is_loopback(endpoint: &str) -> bool {
    let host = bare(endpoint).rsplit_once(':').map_or("", |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
/// The address that packets to there come from; nothing is sent.
fn source_towards(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

/// The source address of the default route.
fn default_route() -> Option<IpAddr> {
    local_ip_address::local_ip().ok()
}
/// Every address of this host, by interface, in the system's order.
fn interfaces() -> Vec<(String, IpAddr)> {
    local_ip_address::list_afinet_netifas().unwrap_or_default()
}

/// The address to go by, and what is doubtful about it. An address that is not there yet (no network at boot) stops no collecting.
fn choose(wanted: &Ip, route: Option<IpAddr>, interfaces: &[(String, IpAddr)]) -> (IpAddr, Option<String>) {
    // IPv4 first, and link-local last: what others can reach, and what people look for.
    let best = |fits: &dyn Fn(&str, IpAddr) -> bool| {
        let rank = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => (v4.is_link_local(), 0),
            IpAddr::V6(v6) => (v6.is_unicast_link_local(), 1),
        };
        interfaces
            .iter()
            .filter(|(name, ip)| fits(name, *ip))
            .map(|(_, ip)| *ip)
            .min_by_key(|ip| rank(*ip))
    };
    let auto = route
        .or_else(|| best(&|_, ip| !ip.is_loopback()))
        .unwrap_or(Ipv4Addr::LOCALHOST.into());
    let or_auto = |found: Option<IpAddr>, what: String| match found {
        Some(ip) => (ip, None),
        None => (auto, Some(format!("{what}, using {auto}"))),
    };
    match wanted {
        Ip::Auto => (auto, None),
        Ip::Fixed(ip) => (*ip, None),
        Ip::Interface(name) => {
            let mut names = interfaces.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
            names.dedup();
            or_auto(
                best(&|found, _| found == name),
                format!("interface {name} has no address (there are: {})", names.join(", ")),
            )
        }
        Ip::Network(net, bits) => or_auto(
            best(&|_, ip| is_within(ip, *net, *bits)),
            format!("no address of this host is in {net}/{bits}"),
        ),
    }
}

fn is_within(ip: IpAddr, net: IpAddr, bits: u8) -> bool {
    let (ip, net, width) = match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => (u128::from(ip.to_bits()), u128::from(net.to_bits()), 32),
        (IpAddr::V6(ip), IpAddr::V6(net)) => (ip.to_bits(), net.to_bits(), 128),
        _ => return false,
    };
    let rest = width - u32::from(bits).min(width);
    // A shift by the whole width is an overflow: /0 of IPv6 takes all.
    (ip ^ net).checked_shr(rest).unwrap_or(0) == 0
}

/// The random id of this installation, 32 hex digits, kept in `path` beside the machine's id. On another machine (a cloned image) a new
/// one is made. Answers what is to be said about it.
fn instance(path: &Path, machine: &str) -> io::Result<(String, Option<String>)> {
    let kept = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(named(path, "read", e)),
    };
    let mut news = None;
    if let Some(text) = &kept {
        let mut words = text.split_whitespace();
        let id = words
            .next()
            .filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()));
        match (id, words.next()) {
            // A machine without an id, now or then, proves nothing.
            (Some(id), was) if was.is_none_or(|was| machine.is_empty() || was == machine) => {
                if was.is_none() && !machine.is_empty() {
                    write(path, &format!("{id} {machine}\n"))?;
                }
                return Ok((id.to_owned(), None));
            }
            (Some(id), _) => {
                news = Some(format!(
                    "this data directory comes from another machine: instance {id} is left behind, a new one is made"
                ))
            }
            (None, _) => news = Some(format!("{} holds no instance id, a new one is made", path.display())),
        }
    }
    let id = random_hex::<16>()?;
    write(path, format!("{id} {machine}").trim_end())?;
    Ok((id, news))
}

/// The admin token, made at the first start: 64 hex digits, readable by the owner alone.
pub fn token(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().len() < SHORTEST_TOKEN => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} holds {} characters, accepted are {SHORTEST_TOKEN} or more; remove it and a new one is made",
                path.display(),
                text.trim().len()
            ),
        )),
        Ok(text) => Ok(text.trim().to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let token = random_hex::<32>()?;
            write(path, &token)?;
            Ok(token)
        }
        Err(e) => Err(named(path, "read", e)),
    }
}
fn write(path: &Path, line: &str) -> io::Result<()> {
    os::write_private(path, format!("{}\n", line.trim_end()).as_bytes()).map_err(|e| named(path, "write", e))
}
fn named(path: &Path, what: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("could not {what} {}: {e}", path.display()))
}

fn random_hex<const BYTES: usize>() -> io::Result<String> {
    let mut bytes = [0u8; BYTES];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(format!("no random numbers: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_address_is_the_one_asked_for_or_the_best_there_is_with_a_word_about_it() {
        let interfaces: Vec<(String, IpAddr)> = [
            ("lo", "127.0.0.1"),
            ("eth0", "fe80::1"),
            ("eth0", "2001:db8::7"),
            ("eth0", "10.1.2.3"),
            ("eth1", "169.254.0.9"),
            ("eth1", "192.168.7.8"),
        ]
        .map(|(name, addr)| (name.to_owned(), ip(addr)))
        .to_vec();
        let route = Some(ip("192.168.7.8"));
        let net = |text: &str| {
            let (net, bits) = text.split_once('/').unwrap();
            Ip::Network(ip(net), bits.parse().unwrap())
        };
        for (wanted, got) in [
            (Ip::Auto, "192.168.7.8"),
            (Ip::Fixed(ip("1.2.3.4")), "1.2.3.4"),
            (Ip::Interface("eth0".into()), "10.1.2.3"),
            (Ip::Interface("eth1".into()), "192.168.7.8"),
            (net("10.1.0.0/16"), "10.1.2.3"),
            (net("10.1.2.3/32"), "10.1.2.3"),
            (net("2001:db8::/32"), "2001:db8::7"),
            (net("::/0"), "2001:db8::7"),
        ] {
            assert_eq!(choose(&wanted, route, &interfaces), (ip(got), None), "{wanted:?}");
        }
        for (wanted, word) in [
            (
                Ip::Interface("eth7".into()),
                "eth7 has no address (there are: lo, eth0, eth1), using 192.168.7.8",
            ),
            (net("10.2.0.0/16"), "10.2.0.0/16, using 192.168.7.8"),
        ] {
            let (got, said) = choose(&wanted, route, &interfaces);
            assert_eq!(got, ip("192.168.7.8"));
            assert!(said.as_deref().unwrap().ends_with(word), "{said:?}");
        }
        // No default route: some address that others may reach; no network at all: loopback.
        assert_eq!(choose(&Ip::Auto, None, &interfaces).0, ip("10.1.2.3"));
        assert_eq!(choose(&Ip::Auto, None, &interfaces[..1]).0, ip("127.0.0.1"));
    }

    #[test]
    fn what_others_cannot_reach_is_not_registered_where_others_look() {
        let lo = [("lo".to_owned(), ip("127.0.0.1"))];
        let eth = [("lo".to_owned(), ip("127.0.0.1")), ("eth0".to_owned(), ip("10.1.2.3"))];
        for (wanted, route, interfaces, here, got) in [
            (Ip::Auto, None, &lo[..], true, Ok(ip("127.0.0.1"))),
            (Ip::Auto, None, &lo, false, Err("waiting for a network")),
            (
                Ip::Auto,
                Some(ip("127.0.0.1")),
                &eth,
                false,
                Err("waiting for a network"),
            ),
            (Ip::Auto, Some(ip("127.0.0.1")), &eth, true, Ok(ip("127.0.0.1"))),
            (Ip::Auto, None, &eth, false, Ok(ip("10.1.2.3"))),
            (
                Ip::Fixed(ip("127.0.0.1")),
                None,
                &eth,
                false,
                Err("waiting for a network"),
            ),
            (Ip::Fixed(ip("10.9.9.9")), None, &lo, false, Ok(ip("10.9.9.9"))),
            (
                Ip::Interface("eth0".into()),
                None,
                &lo,
                false,
                Err("interface eth0 has no address"),
            ),
            (Ip::Interface("eth0".into()), None, &eth, false, Ok(ip("10.1.2.3"))),
        ] {
            let found = register(&wanted, route, interfaces, here);
            match got {
                Ok(ip) => assert_eq!(found, Ok(ip), "{wanted:?}"),
                Err(word) => assert!(found.as_ref().unwrap_err().contains(word), "{wanted:?}: {found:?}"),
            }
        }
        for (endpoint, here) in [
            ("127.0.0.1:2379", true),
            ("http://localhost:2379", true),
            ("https://[::1]:2379", true),
            ("10.0.0.1:2379", false),
            ("etcd.example.org:2379", false),
        ] {
            assert_eq!(is_loopback(endpoint), here, "{endpoint}");
        }
        assert_eq!(source_towards("127.0.0.1:9".parse().unwrap()), Some(ip("127.0.0.1")));
    }

    #[test]
    fn an_instance_stays_on_its_machine_and_a_clone_gets_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("instance");
        let (first, news) = instance(&path, "m1").unwrap();
        assert_eq!((first.len(), news), (32, None));
        assert_eq!(instance(&path, "m1").unwrap(), (first.clone(), None));
        assert_eq!(
            instance(&path, "").unwrap(),
            (first.clone(), None),
            "no id proves nothing"
        );
        let (clone, news) = instance(&path, "m2").unwrap();
        assert_ne!(clone, first);
        assert!(news.unwrap().contains(&first));
        assert_eq!(instance(&path, "m2").unwrap(), (clone, None));

        std::fs::remove_file(&path).unwrap();
        let (unbound, _) = instance(&path, "").unwrap();
        assert_eq!(
            instance(&path, "m3").unwrap(),
            (unbound.clone(), None),
            "bound at the first chance"
        );
        assert_ne!(instance(&path, "m4").unwrap().0, unbound);

        std::fs::write(&path, "\0\0\0").unwrap();
        let (anew, news) = instance(&path, "m1").unwrap();
        assert_eq!(anew.len(), 32);
        assert!(news.unwrap().contains("holds no instance id"));
    }

    #[test]
    fn the_token_is_made_once_private_and_never_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        let made = token(&path).unwrap();
        assert_eq!(made.len(), 64);
        assert_eq!(token(&path).unwrap(), made);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "secret\n").unwrap();
        let error = token(&path).unwrap_err().to_string();
        assert!(error.contains("holds 6 characters"), "{error}");
    }
}
