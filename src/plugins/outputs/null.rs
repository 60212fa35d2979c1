//! Takes everything and keeps nothing: to measure what stands before it, or to switch a pipeline's output off.
use fail::fail_point;
use serde::Deserialize;

use super::*;

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "null",
    tag: "v1",
    stable: true,
    about: "takes everything and keeps nothing",
    delivery: "everything counts as delivered",
    options: &[],
    sample: r#"{ plugin = "null" }"#,
    check: |table| table.read::<Config>().map(drop),
    build: |table, _| {
        table.read::<Config>()?;
        Ok(Box::new(Null))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {}

struct Null;
impl Output for Null {
    fn write(&mut self, batches: &[Batch]) -> Written {
        fail_point!("null-write");
        Written::all(batches.len())
    }
}
