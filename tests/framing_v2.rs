//! All cases of `framing`, with `file:v2`.
#[path = "framing.rs"]
mod cases;
