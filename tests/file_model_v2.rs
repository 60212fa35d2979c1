//! The model of `file_model`, begun with `file:v2`.
#[path = "file_model.rs"]
mod model;
