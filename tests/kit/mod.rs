//! What the tests are made with.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod agent;
pub mod house;
pub mod judge;
pub mod seat;
pub mod servers;
