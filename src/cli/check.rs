//! `agent check`: are the settings such that `start` could begin with them. Starts and touches nothing; with `--online` it also reaches
//! for the far side of each output, step by step.
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Done, FAILED, print, show};
use crate::{
    clock, identity,
    plugins::{
        self,
        outputs::{self, Output, OutputContext, Step},
    },
    settings::{self, Options, Purpose, Settings},
};

pub fn run(options: &Options, online: bool, json: bool) -> Done {
    match settings::load(options, std::env::vars_os(), Purpose::Check) {
        Ok(settings) if online => return Ok(reach_all(&settings, json)),
        Ok(_) if json => print(&show::json(&json!({ "ok": true, "errors": [] }))),
        Ok(_) => print("configuration ok"),
        Err(refused) if json => {
            let errors = refused.errors.iter().map(ToString::to_string).collect::<Vec<_>>();
            print(&show::json(&json!({ "ok": false, "errors": errors })));
            return Ok(refused.code);
        }
        Err(refused) => return Err(refused.into()),
    }
    Ok(0)
}

/// A line for each step as it is done (or all of them at the end, as JSON); 1 if any failed.
fn reach_all(settings: &Settings, json: bool) -> u8 {
    let (mut steps, mut failed) = (Vec::<Value>::new(), false);
    if !json {
        print("configuration ok");
    }
    for pipeline in &settings.pipelines {
        for (number, wanted) in pipeline.outputs.iter().enumerate() {
            let before = &pipeline.outputs[..number];
            let same = before.iter().filter(|o| o.plugin.name.name == wanted.plugin.name.name);
            let label = match same.count() {
                0 => wanted.plugin.name.name.clone(),
                n => format!("{}#{}", wanted.plugin.name.name, n + 1),
            };
            let mut told = 0;
            let mut say = |Step { what, result }: Step| {
                told += 1;
                failed |= result.is_err();
                let (word, text) = match &result {
                    Ok(found) => ("ok", format!("{what}: {found}")),
                    Err(error) => ("failed", error.clone()),
                };
                match json {
                    true => steps.push(json!({ "pipeline": pipeline.name, "output": label, "step": what,
                        "ok": result.is_ok(), "found": result.as_ref().ok(), "error": result.as_ref().err() })),
                    false => print(&format!("{word:<7} {}/{label}: {text}", pipeline.name)),
                }
            };
            match build(settings, pipeline, wanted, &label) {
                Ok(mut output) => output.online(&mut say),
                Err(error) => say(Step::new("build".into(), Err(&error))),
            }
            if told == 0 && !json {
                print(&format!("{:<7} {}/{label}: it has no far side", "ok", pipeline.name));
            }
        }
    }
    if json {
        print(&show::json(&json!({ "ok": !failed, "errors": [], "steps": steps })));
    }
    if failed { FAILED } else { 0 }
}
fn build(
    settings: &Settings,
    pipeline: &settings::Pipeline,
    wanted: &settings::Output,
    label: &str,
) -> Result<Box<dyn Output>, String> {
    let plugin = plugins::find(outputs::CATALOG, "output", &wanted.plugin.name)?;
    let found = identity::find(&settings.agent, &settings.etcd.endpoints, None).map_err(|error| error.to_string())?;
    let context = OutputContext {
        pipeline: pipeline.name.as_str().into(),
        label: label.into(),
        host: Arc::new(found.host),
        log: slog::Logger::root(slog::Discard, slog::o!()),
        clock: clock::system(),
    };
    (plugin.build)(&wanted.plugin.table, context).map_err(|error| error.to_string())
}
