//! Who this agent is: it travels with every event.
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub agent_id: String,
    pub group: String,
    pub hostname: String,
    pub ip: IpAddr,
    /// A random id of this installation, bound to the machine; empty where no state is kept.
    pub instance: String,
}
