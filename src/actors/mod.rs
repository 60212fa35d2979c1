//! What lives: supervised actors, one a line.
pub mod http_api;
