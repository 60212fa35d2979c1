//! How answers look in a terminal.
use std::time::Duration;

use serde_json::Value;

/// Columns as wide as they need, two spaces between; numbers to the right. The first row is the head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max();
    let widths = (0..columns).map(|i| width(i).unwrap_or(0)).collect::<Vec<_>>();
    let is_number = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit());
    let numeric = |i: usize| rows.len() > 1 && rows[1..].iter().filter_map(|r| r.get(i)).all(|c| is_number(c));
    let numeric = (0..columns).map(numeric).collect::<Vec<_>>();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[i] - cell.chars().count());
            line += &if numeric[i] {
                format!("{space}{cell}  ")
            } else {
                format!("{cell}{space}  ")
            };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// A field for people; `-` if it is not there.
pub fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
/// A field that is a list; empty if it is not there.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
pub fn json(value: &Value) -> String {
    format!("{value:#}")
}

/// `0`, `812`, `1.4 KiB`, `20.0 GiB`
pub fn bytes(n: u64) -> String {
    let mut size = n as f64;
    if n < 1024 {
        return n.to_string();
    }
    for unit in ["KiB", "MiB", "GiB"] {
        size /= 1024.0;
        if size < 1023.95 {
            return format!("{size:.1} {unit}");
        }
    }
    format!("{:.1} TiB", size / 1024.0)
}
/// The two largest parts: `3d 4h`, `12m 5s`, `9s`.
pub fn span(time: Duration) -> String {
    let s = time.as_secs();
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["NAME", "SIZE", "WHY"], ["ä", "5", ""], ["long one", "1200", "x"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "NAME      SIZE  WHY\nä            5\nlong one  1200  x\n");
    }

    #[test]
    fn numbers_for_people() {
        for (n, shown) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (21_474_836_480, "20.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(n), shown);
        }
        for (s, shown) in [(9, "9s"), (60, "1m 0s"), (3725, "1h 2m"), (200_000, "2d 7h")] {
            assert_eq!(span(Duration::from_secs(s)), shown);
        }
    }
}
