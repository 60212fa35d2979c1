//! From an address to a connection, step by step: look the name up, connect, TLS handshake. Blocks, within limits: it runs on a
//! thread of its own, or for `agent check --online`.
use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use fail::fail_point;
use rustls::{ClientConnection, ProtocolVersion};

use super::link::Link;
use crate::{
    model::Span,
    os,
    plugins::{
        outputs::{Step, said},
        tls::{self, ClientTls},
    },
};

/// With TLS 1.3 a client is done before the server has looked at its certificate: what was sent by then is acknowledged by a kernel,
/// and lost if the server refuses. So its first word (a session ticket, nearly always) is waited for, up to so long.
const VERDICT: Duration = Duration::from_secs(1);

pub struct Target {
    /// As it was given.
    text: String,
    host: String,
    port: u16,
    /// A lookup that took too long is still under way: nobody can end it, so the next dial waits for the same one.
    lookup: Mutex<Option<Lookup>>,
}
type Lookup = Receiver<io::Result<Vec<IpAddr>>>;
impl Target {
    pub fn parse(text: &str) -> Result<Self, String> {
        let refused = |accepted: &str| format!("found `{text}`, accepted: {accepted}");
        const FORM: &str = "`host:port`, or `[::1]:port` with an IPv6 address in brackets";
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refused(FORM))?;
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| refused("a port from 1 to 65535 behind the last colon"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) if host.parse::<Ipv6Addr>().is_ok() => host,
            Some(_) => return Err(refused(FORM)),
            None if host.is_empty() || host.contains([':', '/', '[', ']']) || host.contains(char::is_whitespace) => {
                return Err(refused(FORM));
            }
            None => host,
        };
        Ok(Self {
            text: text.to_owned(),
            host: host.to_owned(),
            port,
            lookup: Mutex::default(),
        })
    }
    fn lookup(&self, limit: Duration) -> Result<Vec<IpAddr>, String> {
        if let Ok(ip) = self.host.parse() {
            return Ok(vec![ip]);
        }
        let mut under_way = self.lookup.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error: &io::Error| {
            // getaddrinfo's own words stand behind a colon.
            let text = said(error);
            let reason = text.rsplit(": ").next().unwrap_or(&text).to_lowercase();
            format!("could not look up `{}`: {reason}", self.host)
        };
        let told = match under_way.take() {
            Some(told) => told,
            None => {
                let (tell, told) = channel();
                let name = (self.host.clone(), self.port);
                let look = move || {
                    let found = name.to_socket_addrs().map(|all| all.map(|a| a.ip()).collect());
                    let _ = tell.send(found); // whoever waited may be gone
                };
                let thread = std::thread::Builder::new().name("tcp-lookup".into());
                thread.spawn(look).map_err(|error| failed(&error))?;
                told
            }
        };
        match told.recv_timeout(limit) {
            Ok(Ok(mut ips)) => {
                ips.dedup();
                match ips.is_empty() {
                    true => Err(format!("could not look up `{}`: it has no address", self.host)),
                    false => Ok(ips),
                }
            }
            Ok(Err(error)) => Err(failed(&error)),
            Err(RecvTimeoutError::Timeout) => {
                *under_way = Some(told);
                Err(format!("could not look up `{}` within {}", self.host, Span(limit)))
            }
            Err(RecvTimeoutError::Disconnected) => Err(format!("could not look up `{}`: its thread fell", self.host)),
        }
    }
    /// For people: the address as it was given, and what it stands for.
    fn shown(&self, ip: IpAddr) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(_) => self.text.clone(),
            Err(_) => format!("{} ({ip})", self.text),
        }
    }
}

pub struct Dialer {
    targets: Vec<Target>,
    /// Of each step.
    limit: Duration,
    keepalive: Duration,
    tls: Option<ClientTls>,
}

impl Dialer {
    pub fn new(targets: Vec<Target>, limit: Duration, keepalive: Duration, tls: Option<ClientTls>) -> Self {
        Self {
            targets,
            limit,
            keepalive,
            tls,
        }
    }
    /// The first that answers, beginning with target number `turn`; and its number.
    pub fn dial(&self, turn: usize) -> Result<(usize, Link), String> {
        fail_point!("tcp-dial");
        let mut failures = Vec::new();
        for turn in (turn..).take(self.targets.len()) {
            match self.reach(&self.targets[turn % self.targets.len()], &mut |_| {}) {
                Ok(link) => return Ok((turn, link)),
                Err(error) => failures.push(error),
            }
        }
        Err(failures.join("; "))
    }
    /// Every target, each of its steps told.
    pub fn try_all(&self, say: &mut dyn FnMut(Step)) {
        for target in &self.targets {
            if let Ok(link) = self.reach(target, say) {
                link.close();
            }
        }
    }
    fn reach(&self, target: &Target, say: &mut dyn FnMut(Step)) -> Result<Link, String> {
        let found = target.lookup(self.limit);
        let list = |ips: &Vec<IpAddr>| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        say(Step::new(format!("look up {}", target.text), found.as_ref().map(list)));
        let mut failure = String::new();
        for ip in found? {
            match self.reach_ip(target, ip, say) {
                Ok(link) => return Ok(link),
                Err(error) if failure.is_empty() => failure = error,
                Err(error) => failure = format!("{failure}; {error}"),
            }
        }
        Err(failure)
    }
    fn reach_ip(&self, target: &Target, ip: IpAddr, say: &mut dyn FnMut(Step)) -> Result<Link, String> {
        let peer = target.shown(ip);
        let socket = self.connect(SocketAddr::new(ip, target.port));
        let socket = socket.map_err(|why| format!("could not connect to {peer}: {why}"));
        let local = |socket: &TcpStream| {
            socket
                .local_addr()
                .map_or("ok".into(), |local| format!("ok, from {local}"))
        };
        say(Step::new(format!("connect to {peer}"), socket.as_ref().map(local)));
        let socket = socket?;
        let Some(tls) = &self.tls else {
            return Link::plain(socket, peer).map_err(|error| said(&error));
        };
        let made = self.handshake(tls, target, &socket);
        let made = made.map_err(|why| format!("TLS handshake with {peer} failed: {why}"));
        let about = |(session, _): &(ClientConnection, u64)| tls::about(session);
        say(Step::new(
            format!("TLS handshake with {peer}"),
            made.as_ref().map(about),
        ));
        let (session, wire) = made?;
        Link::encrypted(socket, peer, session, wire).map_err(|error| said(&error))
    }
    fn connect(&self, address: SocketAddr) -> Result<TcpStream, String> {
        let socket = TcpStream::connect_timeout(&address, self.limit).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => format!("no answer within {}", Span(self.limit)),
            _ => said(&error),
        })?;
        let set = || {
            socket.set_nodelay(true)?; // events are joined already
            os::keep_alive(&socket, self.keepalive)
        };
        set().map_err(|error| said(&error))?;
        Ok(socket)
    }
    /// The session, and how many bytes it has written.
    fn handshake(
        &self,
        tls: &ClientTls,
        target: &Target,
        socket: &TcpStream,
    ) -> Result<(ClientConnection, u64), String> {
        let name = tls.name_of(&target.host)?;
        let mut session = ClientConnection::new(tls.config()?, name).map_err(|error| tls::words(&error))?;
        let ends = Instant::now() + self.limit;
        let mut wire = 0;
        while session.is_handshaking() || session.wants_write() {
            let left = ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("not done within {}", Span(self.limit)));
            }
            if session.wants_write() {
                let set = socket.set_write_timeout(Some(left));
                let written = set.and_then(|()| session.write_tls(&mut &*socket));
                wire += written.map_err(|error| self.said(&error))? as u64;
            } else {
                self.hear(&mut session, socket, left)?;
            }
        }
        if session.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
            match self.hear(&mut session, socket, VERDICT.min(self.limit)) {
                Err(why) if why == SILENCE => {}
                heard => heard?,
            }
        }
        Ok((session, wire))
    }
    /// One reading of what the peer says within so long, or `SILENCE`.
    fn hear(&self, session: &mut ClientConnection, socket: &TcpStream, time: Duration) -> Result<(), String> {
        let set = socket.set_read_timeout(Some(time));
        match set.and_then(|()| session.read_tls(&mut &*socket)) {
            Ok(0) => return Err("the peer has closed the connection".into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(SILENCE.into()),
            Err(error) => return Err(said(&error)),
        }
        let state = session.process_new_packets().map_err(|error| {
            let words = tls::words(&error);
            let _ = session.write_tls(&mut &*socket); // the alert that tells the peer
            words
        })?;
        if state.peer_has_closed() {
            return Err("the peer has closed the session".into());
        }
        Ok(())
    }
    fn said(&self, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::WouldBlock => SILENCE.into(),
            _ => said(error),
        }
    }
}
const SILENCE: &str = "the peer does not answer";

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        Target::parse(text).unwrap()
    }
    #[test]
    fn addresses_of_every_kind() {
        for (text, host, port) in [
            ("localhost:514", "localhost", 514),
            ("10.0.0.7:6514", "10.0.0.7", 6514),
            ("[::1]:65535", "::1", 65535),
        ] {
            let target = target(text);
            assert_eq!((&*target.host, target.port), (host, port));
        }
        for text in [
            "",
            "a",
            "a:",
            "a:x",
            "a:70000",
            "a:0",
            ":1",
            "::1",
            "[::1]",
            "[a]:1",
            "http://a:1",
            "a b:1",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }
    #[test]
    fn a_name_that_is_none_and_one_that_takes_too_long() {
        assert_eq!(target("[::1]:1").lookup(Duration::ZERO).unwrap(), [Ipv6Addr::LOCALHOST]);
        assert!(
            !target("localhost:1")
                .lookup(Duration::from_secs(60))
                .unwrap()
                .is_empty()
        );
        let error = target("no.such.name.invalid:1")
            .lookup(Duration::from_secs(60))
            .unwrap_err();
        assert!(
            error.starts_with("could not look up `no.such.name.invalid`: "),
            "{error}"
        );

        // One that hangs is waited for again, not begun again.
        let slow = target("slow.invalid:1");
        let (tell, told) = channel();
        *slow.lookup.lock().unwrap() = Some(told);
        let error = slow.lookup(Duration::from_millis(1)).unwrap_err();
        assert_eq!(error, "could not look up `slow.invalid` within 1ms");
        tell.send(Ok(vec![IpAddr::from([10, 0, 0, 7])])).unwrap();
        assert_eq!(slow.lookup(Duration::ZERO).unwrap(), [IpAddr::from([10, 0, 0, 7])]);
    }
}
