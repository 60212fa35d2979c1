//! `agent etcd-roles`: the least rights that agents need in etcd, as commands to type or to pipe into a shell. Needs no agent and no etcd.
use serde_json::json;

use super::{Done, Failed, args::EtcdRoles, load, print};
use crate::{
    identity::Addresses,
    settings::Purpose,
    store::roles::{self, Proof, Role},
};

pub fn run(asked: &EtcdRoles) -> Done {
    let settings = load(&asked.options, Purpose::Check)?;
    let prefix = &settings.etcd.prefix;
    let mut hosts = asked.host.iter().map(ToString::to_string).collect::<Vec<_>>();
    if hosts.is_empty() && !asked.operator {
        hosts.push(own_address(&settings)?);
    }
    if asked.user.is_some() && hosts.len() + usize::from(asked.operator) != 1 {
        return Err(Failed::usage(
            "`--user` names one user, accepted: with one --host, or with --operator alone",
        ));
    }
    let mut groups = asked.group.clone();
    if asked.host.is_empty() && groups.is_empty() && settings.agent.group_given {
        groups.push(settings.agent.group.clone());
    }
    let proof = if asked.password {
        Proof::Password
    } else {
        Proof::Certificate
    };
    let name = |default: String| asked.user.clone().unwrap_or(default);

    let groups = groups
        .iter()
        .map(|group| roles::group(group, prefix))
        .collect::<Vec<_>>();
    let mut all = if hosts.is_empty() { vec![] } else { groups.clone() };
    let mut users = vec![];
    for host in &hosts {
        let own = roles::host(host, prefix);
        let granted = std::iter::once(own.name.clone()).chain(groups.iter().map(|group| group.name.clone()));
        users.push((name(format!("luffly-{host}")), granted.collect::<Vec<_>>()));
        all.push(own);
    }
    if asked.operator {
        let operator = roles::operator(prefix);
        users.push((name(operator.name.clone()), vec![operator.name.clone()]));
        all.push(operator);
    }
    let text = match asked.json {
        true => as_json(&all, &users),
        false => as_commands(&all, &users, proof),
    };
    print(&text);
    Ok(0)
}
fn own_address(settings: &crate::settings::Settings) -> Result<String, Failed> {
    let addresses = Addresses {
        wanted: settings.agent.ip.clone(),
        etcd: settings.etcd.endpoints.clone(),
    };
    if addresses.etcd.is_empty() {
        return Err(Failed::usage(
            "found neither --host nor etcd.endpoints to tell this host's address by, accepted: one of them",
        ));
    }
    addresses.look().map(|ip| ip.to_string()).map_err(Failed::new)
}

fn as_commands(roles: &[Role], users: &[(String, Vec<String>)], proof: Proof) -> String {
    let mut lines = vec![
        "# What exists already says so, and stays as it is. When all roles and users are there, once: etcdctl auth enable".to_owned(),
        "# (before it: etcdctl user add root; etcdctl user grant-role root root)".to_owned(),
    ];
    for role in roles {
        lines.extend(roles::role_commands(role));
    }
    if proof == Proof::Certificate && !users.is_empty() {
        lines.push(
            "# A user by its certificate: its common name is the user's name, and etcd has --client-cert-auth"
                .to_owned(),
        );
    }
    for (user, granted) in users {
        let granted = roles
            .iter()
            .filter(|role| granted.contains(&role.name))
            .collect::<Vec<_>>();
        lines.extend(roles::user_commands(user, &granted, proof));
    }
    lines.join("\n")
}
fn as_json(roles: &[Role], users: &[(String, Vec<String>)]) -> String {
    let grants = |role: &Role| {
        let grant =
            |grant: &roles::Grant| json!({ "access": grant.access.word(), "key": grant.key, "prefix": grant.prefix });
        role.grants.iter().map(grant).collect::<Vec<_>>()
    };
    let roles = roles
        .iter()
        .map(|role| json!({ "name": role.name, "grants": grants(role) }))
        .collect::<Vec<_>>();
    let users = users
        .iter()
        .map(|(name, granted)| json!({ "name": name, "roles": granted }))
        .collect::<Vec<_>>();
    let shown = json!({ "roles": roles, "users": users });
    format!("{shown:#}")
}
