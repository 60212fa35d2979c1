//! Everything about a real etcd, which scripts/setup.sh brings (`ETCD=/path/to/etcd`: another one): the store, the actors on it, the whole
//! process, and the roles that etcd is asked for.
#[path = "../kit/mod.rs"]
mod kit;

mod actors;
mod exclusive;
mod fleet;
mod process;
mod roles;
mod store;
