//! What an agent must be allowed in etcd, and no more: for `agent etcd-roles`. One role a host, one a group, one for those who put jobs.
//! A stolen certificate of one host then reaches neither another host's jobs nor its answers.
use super::keys;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// etcd has no right of its own for deletions.
    ReadWrite,
}
impl Access {
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadWrite => "readwrite",
        }
    }
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub access: Access,
    pub key: String,
    /// All keys that begin with it.
    pub prefix: bool,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    pub name: String,
    pub grants: Vec<Grant>,
}

fn below(access: Access, key: impl Into<String>) -> Grant {
    Grant {
        access,
        key: key.into(),
        prefix: true,
    }
}
fn one(access: Access, key: String) -> Grant {
    Grant {
        access,
        key,
        prefix: false,
    }
}
fn role(name: String, prefix: &str, grants: Vec<Grant>) -> Role {
    let full = |grant: Grant| Grant {
        key: format!("{prefix}{}", grant.key),
        ..grant
    };
    Role {
        name,
        grants: grants.into_iter().map(full).collect(),
    }
}

/// `prefix`: that of the settings, before every key.
pub fn host(ip: &str, prefix: &str) -> Role {
    use Access::{Read, ReadWrite};
    role(
        format!("luffly-host-{ip}"),
        prefix,
        vec![
            below(Read, keys::jobs(ip)),
            below(ReadWrite, keys::cronid(ip, "")),
            below(ReadWrite, keys::commands(ip)),
            below(ReadWrite, keys::result(ip, "")),
            below(ReadWrite, keys::once(ip, "")),
            one(ReadWrite, keys::health(ip)),
            one(ReadWrite, keys::node(ip)),
            one(ReadWrite, keys::runs(ip)), // with publish_runs
        ],
    )
}
/// For every host of the group.
pub fn group(group: &str, prefix: &str) -> Role {
    use Access::{Read, ReadWrite};
    role(
        format!("luffly-group-{group}"),
        prefix,
        vec![
            below(Read, keys::group_jobs(group)),
            below(ReadWrite, keys::claim(group, "")),
            below(ReadWrite, keys::running(group, "")),
            below(Read, keys::HEALTH), // how many there are: so few try to claim
        ],
    )
}
/// For servers and people: puts jobs, sends commands, sees all.
pub fn operator(prefix: &str) -> Role {
    use Access::{Read, ReadWrite};
    role(
        "luffly-operator".into(),
        prefix,
        vec![
            below(ReadWrite, "/cron/jobs/"),
            below(ReadWrite, "/cron/groups/"),
            below(ReadWrite, "/cron/commands/"),
            below(Read, "/cron/results/"),
            below(Read, "/cron/cronid/"),
            below(Read, "/cron/claims/"),
            below(Read, "/cron/running/"),
            below(Read, keys::runs("")),
            below(Read, keys::HEALTH),
            below(ReadWrite, keys::node("")), // `agent nodes rm`
        ],
    )
}

/// How a user shows who he is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its common name is the user's name.
    Certificate,
    Password,
}
/// What is to be typed, once a role; a shell can run it.
pub fn role_commands(role: &Role) -> Vec<String> {
    let name = quoted(&role.name);
    let grant = |grant: &Grant| {
        let prefix = if grant.prefix { "--prefix=true " } else { "" };
        format!(
            "etcdctl role grant-permission {prefix}{name} {} {}",
            grant.access.word(),
            quoted(&grant.key)
        )
    };
    let add = format!("etcdctl role add {name}");
    std::iter::once(add).chain(role.grants.iter().map(grant)).collect()
}
pub fn user_commands(user: &str, roles: &[&Role], proof: Proof) -> Vec<String> {
    let user = quoted(user);
    let add = match proof {
        Proof::Certificate => format!("etcdctl user add --no-password {user}"),
        Proof::Password => format!("etcdctl user add {user}"), // asks for it
    };
    let grant = |role: &&Role| format!("etcdctl user grant-role {user} {}", quoted(&role.name));
    std::iter::once(add).chain(roles.iter().map(grant)).collect()
}
/// As one word of a shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:@%+,".contains(&b);
    match !word.is_empty() && word.bytes().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed() {
        let web = group("we b", "/luffly");
        let expected = [
            "etcdctl role add 'luffly-group-we b'",
            "etcdctl role grant-permission --prefix=true 'luffly-group-we b' read '/luffly/cron/groups/we b/jobs/'",
            "etcdctl role grant-permission --prefix=true 'luffly-group-we b' readwrite '/luffly/cron/claims/we b/'",
            "etcdctl role grant-permission --prefix=true 'luffly-group-we b' readwrite '/luffly/cron/running/we b/'",
            "etcdctl role grant-permission --prefix=true 'luffly-group-we b' read /luffly/agent/health/",
        ];
        assert_eq!(role_commands(&web), expected);
        let own = host("10.0.0.1", "");
        let printed = role_commands(&own);
        assert_eq!(
            printed[6],
            "etcdctl role grant-permission luffly-host-10.0.0.1 readwrite /agent/health/10.0.0.1"
        );
        assert_eq!(
            user_commands("web01", &[&own, &web], Proof::Certificate),
            [
                "etcdctl user add --no-password web01",
                "etcdctl user grant-role web01 luffly-host-10.0.0.1",
                "etcdctl user grant-role web01 'luffly-group-we b'",
            ]
        );
        assert_eq!(
            user_commands("it's", &[], Proof::Password),
            [r"etcdctl user add 'it'\''s'"]
        );
        // 10.0.0.1 is not 10.0.0.11: what is a prefix ends in a slash.
        for role in [own, web, operator("/x")] {
            assert!(
                role.grants.iter().all(|grant| grant.prefix == grant.key.ends_with('/')),
                "{role:?}"
            );
        }
    }
}
