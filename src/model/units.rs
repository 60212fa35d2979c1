//! Sizes and durations as people write them: text with a unit. Used by the settings, by the plugins' tables and on the command line.
use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes: `"256KiB"`, `"100MiB"`, `"1GB"`, or a whole number. Shown with the largest binary unit that divides it, so that it can be
/// read back exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A length of time: `"200ms"`, `"30s"`, `"1h30m"`, `"7d"`. A bare number is refused: nobody could tell its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl Size {
    pub const ACCEPTED: &str = "a size as in \"256KiB\", \"100MiB\" or \"1GB\", or a whole number of bytes";
}
impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("found {text:?}, accepted: {}", Self::ACCEPTED);
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start_matches(' ');
        let factor = match unit {
            "" => 1,
            _ => {
                UNITS
                    .iter()
                    .find(|u| u.0.eq_ignore_ascii_case(unit))
                    .ok_or_else(refused)?
                    .1
            }
        };
        let number: u64 = number.parse().map_err(|_| refused())?;
        number.checked_mul(factor).map(Self).ok_or_else(refused)
    }
}
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS[..5]
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&UNITS[4]);
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl Span {
    pub const ACCEPTED: &str = "a duration with its unit as in \"200ms\", \"30s\", \"5m\", \"1h30m\" or \"7d\"";
}
impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("found {text:?}, accepted: {}", Self::ACCEPTED);
        let span: jiff::Span = text.parse().map_err(|_| refused())?;
        let length = span
            .to_duration(jiff::SpanRelativeTo::days_are_24_hours()) // no months and years: their length is not known
            .map_err(|_| refused())?;
        Duration::try_from(length).map(Self).map_err(|_| refused())
    }
}
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        let seconds = self.0.as_secs();
        let sub = self.0.subsec_nanos();
        for (count, unit) in [
            (seconds / 86_400, "d"),
            (seconds / 3_600 % 24, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (u64::from(sub / 1_000_000), "ms"),
            (u64::from(sub / 1_000 % 1_000), "us"),
            (u64::from(sub % 1_000), "ns"),
        ] {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Size::ACCEPTED)
            }
            fn visit_u64<E>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                let refused = |_| E::invalid_value(de::Unexpected::Signed(bytes), &self);
                u64::try_from(bytes).map(Size).map_err(refused)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}
impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Span::ACCEPTED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}
impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("256KiB", 256 << 10),
            ("100 MiB", 100 << 20),
            ("64mib", 64 << 20),
            ("1GB", 1_000_000_000),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in [
            "",
            " ",
            "MiB",
            "-1",
            "+1",
            "1.5GiB",
            "64M",
            "64 MiB ",
            "99999999TiB",
            "٣",
        ] {
            assert_eq!(
                bad.parse::<Size>(),
                Err(format!(
                    "found {bad:?}, accepted: a size as in \"256KiB\", \"100MiB\" or \"1GB\", or a whole number of bytes"
                ))
            );
        }
        for (bytes, text) in [
            (0, "0B"),
            (1000, "1000B"),
            (1536, "1536B"),
            (64 << 20, "64MiB"),
            (1 << 40, "1TiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
    #[test]
    fn spans() {
        for (text, ms) in [
            ("0s", 0),
            ("200ms", 200),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("7d", 604_800_000),
            ("1w", 604_800_000),
            ("1.5s", 1_500),
        ] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))), "{text}");
        }
        for bad in [
            "",
            "30",
            "-5s",
            "5s ago",
            "1mo",
            "1y",
            "soon",
            "5 parsecs",
            "99999999999h",
        ] {
            let accepted = "a duration with its unit as in \"200ms\", \"30s\", \"5m\", \"1h30m\" or \"7d\"";
            assert_eq!(bad.parse::<Span>(), Err(format!("found {bad:?}, accepted: {accepted}")));
        }
        assert_eq!(Span(Duration::from_secs(5_400)).to_string(), "1h30m");
        assert_eq!(Span(Duration::ZERO).to_string(), "0s");
    }
    #[test]
    fn as_plugins_read_them() {
        assert_eq!(serde_json::from_str::<Size>("7").unwrap(), Size(7));
        assert_eq!(serde_json::from_str::<Size>("\"1KiB\"").unwrap(), Size(1024));
        assert_eq!(
            serde_json::to_string(&Span(Duration::from_millis(200))).unwrap(),
            "\"200ms\""
        );
        for (json, message) in [
            ("-1", "invalid value: integer `-1`, expected a size as in"),
            ("true", "invalid type: boolean `true`, expected a size as in"),
        ] {
            let error = serde_json::from_str::<Size>(json).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
        let error = serde_json::from_str::<Span>("30").unwrap_err().to_string();
        assert!(
            error.starts_with("invalid type: integer `30`, expected a duration with its unit"),
            "{error}"
        );
    }
    proptest! {
        #[test]
        fn shown_and_read_back(bytes: u64, nanos in 0..i64::MAX) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            let span = Span(Duration::from_nanos(nanos as u64));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
        #[test]
        fn any_text_is_answered(text: String) {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Span>();
        }
    }
}
