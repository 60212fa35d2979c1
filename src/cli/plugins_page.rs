//! `agent plugins --markdown`: docs/plugins.md, from the catalog. The results of its examples are what the filters make of them now; tests
//! hold the page to this, and `agent try` to the page.
use super::{
    Done, Failed,
    plugins::{Row, catalog},
    print,
    try_::Trial,
};
use crate::{
    plugins::{Table, filters},
    settings,
};

const HEAD: &str = "\
# Plugins

What a pipeline is made of, and how to set it. This page is written by `agent plugins --markdown`; a test holds it equal to that.
`agent plugins NAME` shows one of them in the terminal. `name:tag` picks a version, `name` alone the newest stable one.

Beside its own options every input takes `max_rate`, and every output `when_full`, `degrade` and `retry` (see `config/agent.toml`).
";
const FILTERS: &str = "
They run in order, over whole batches. What a filter takes away is counted by filter and reason in `luffly_events_filtered_total`,
what it could not work on and let pass in `luffly_filter_passed_total`. Two of a kind in one pipeline are `grep` and `grep#2`. What a filter
remembers changes together with the result: a batch that has to be filtered again is not counted twice.

Under each stands an example. Try it, or your own, with `agent try`: it starts nothing and touches nothing. `agent try -config FILE
--sample FILE` sends a sample through the filters of a config; `--pipeline NAME` picks one of several, `--json` is for programs.
";

pub fn run() -> Done {
    print(&page().map_err(Failed::new)?);
    Ok(0)
}

fn page() -> Result<String, String> {
    let mut page = HEAD.to_owned();
    let rows = catalog();
    for (kind, title, key) in [
        ("input", "Inputs", "input = "),
        ("filter", "Filters", "filters = ["),
        ("output", "Outputs", "outputs = ["),
    ] {
        page += &format!("\n## {title}\n");
        if kind == "filter" {
            page += FILTERS;
        }
        for row in rows.iter().filter(|row| row.kind == kind) {
            page += &plugin(row, key);
            if let Some(example) = filters::EXAMPLES
                .iter()
                .find(|e| kind == "filter" && e.plugin == row.name)
            {
                page += &worked(example)?;
            }
        }
    }
    Ok(page)
}
fn plugin(row: &Row, key: &str) -> String {
    let stable = if row.stable { "" } else { " (not stable)" };
    let mut text = format!(
        "\n### {}:{}{stable}\n\n{}.\n\nPromise: {}.\n",
        row.name, row.tag, row.about, row.delivery
    );
    if !row.options.is_empty() {
        text += "\n| option | default | meaning |\n|---|---|---|\n";
        for option in row.options {
            // A bar inside a cell ends it, in backticks too.
            let cell = |text: &str| text.replace('|', "\\|");
            let default = match option.default {
                "required" | "none" | "" => option.default.to_owned(),
                default => format!("`{}`", cell(default)),
            };
            text += &format!("| `{}` | {default} | {} |\n", option.name, cell(option.about));
        }
    }
    let close = if key.ends_with('[') { "]" } else { "" };
    text + &format!("\n```toml\n{key}{}{close}\n```\n", row.sample)
}
fn worked(example: &filters::Example) -> Result<String, String> {
    let table = serde_json::from_str(example.options).map_err(|error| format!("{}: {error}", example.plugin))?;
    let plugin = settings::Plugin {
        name: example.plugin.parse()?,
        table: Table(table),
    };
    let mut trial = Trial::new(&[plugin])?;
    let mut result = String::new();
    for (number, line) in example.lines.iter().enumerate() {
        result += &trial
            .one(line.as_bytes())
            .text(line.as_bytes(), number as u64 + 1, false);
    }
    let inline = match example.options {
        "{}" => String::new(),
        options => format!(" -f '{{\"filter\":{{\"{}\":{options}}}}}'", example.plugin),
    };
    Ok(format!(
        "\nWith these lines in `sample.log`\n\n```text\n{}\n```\n\n```sh\nagent try --sample sample.log -filter={}{inline}\n```\n\nprints\n\n```text\n{result}{}\n```\n",
        example.lines.join("\n"),
        example.plugin,
        trial.counts,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/plugins.md");
        let is = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            is == page().unwrap(),
            "docs/plugins.md is not what it should be: agent plugins --markdown > docs/plugins.md"
        );
    }
    #[test]
    fn every_plugin_stands_on_it() {
        let page = page().unwrap();
        for row in catalog() {
            assert!(page.contains(&format!("\n### {}:{}", row.name, row.tag)));
        }
        assert!(
            filters::EXAMPLES.iter().all(|e| !e.options.contains('\'')),
            "the shell would read it"
        );
    }
}
