//! `agent files`: every file that a pipeline knows, and how far it is.
use serde_json::Value;

use super::{
    Done,
    args::Ask,
    client, data_dir, print,
    show::{self, text},
};

pub fn run(ask: &Ask) -> Done {
    let answer = client::get(&data_dir(&ask.place)?, "/api/v1/files")?;
    print(&if ask.json { show::json(&answer) } else { page(&answer) });
    Ok(0)
}

fn page(answer: &Value) -> String {
    let files = show::list(answer, "files");
    if files.is_empty() {
        return "no files\n".to_owned();
    }
    let head = [
        "PIPELINE", "STATE", "SIZE", "READ", "ACKED", "LAG", "IDENTITY", "PATH", "WHY",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let bytes = |file: &Value, key: &str| show::bytes(file[key].as_u64().unwrap_or(0));
    for file in files {
        let mut path = text(file, "path");
        for alias in show::list(file, "aliases") {
            path += &format!(" = {}", alias.as_str().unwrap_or_default());
        }
        rows.push(vec![
            text(file, "pipeline"),
            text(file, "state"),
            bytes(file, "size"),
            bytes(file, "read"),
            bytes(file, "acknowledged"),
            bytes(file, "lag"),
            text(file, "identity"),
            path,
            file["reason"].as_str().unwrap_or_default().to_owned(),
        ]);
    }
    show::table(&rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_a_file() {
        let page = page(&json!({ "files": [
            { "pipeline": "nginx", "path": "/var/log/a.log", "identity": "8:1f", "size": 2048, "read": 2048, "acknowledged": 1024,
              "lag": 1024, "state": "tailing", "reason": "", "aliases": ["/var/log/b.log"] },
            { "pipeline": "nginx", "path": "/var/log/c.log", "identity": "", "size": 0, "read": 0, "acknowledged": 0,
              "lag": 0, "state": "denied", "reason": "permission denied", "aliases": [] },
        ]}));
        assert_eq!(
            page,
            "PIPELINE  STATE       SIZE     READ    ACKED      LAG  IDENTITY  PATH                             WHY\n\
             nginx     tailing  2.0 KiB  2.0 KiB  1.0 KiB  1.0 KiB  8:1f      /var/log/a.log = /var/log/b.log\n\
             nginx     denied         0        0        0        0  -         /var/log/c.log                   permission denied\n"
        );
        assert_eq!(super::page(&json!({ "files": [] })), "no files\n");
    }
}
