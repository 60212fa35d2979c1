//! What the tests are made with.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::disallowed_methods,
    reason = "a test waits between two looks, on a thread of its own"
)]

pub mod agent;
pub mod house;
pub mod judge;
pub mod seat;
pub mod servers;
