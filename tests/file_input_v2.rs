//! All cases of `file_input`, with `file:v2`.
#[path = "file_input.rs"]
mod cases;
