//! When a job is due: robfig/cron v3's expressions, parsed into masks, and mapped to instants in a time zone.
//!
//! Grammar as `cron.ParseStandard` has it (`?`, names, steps, `@every`, `CRON_TZ=`, day of month OR day of week unless one has a star),
//! and six fields too, seconds first. Wall-clock times that a zone skips are skipped, those that it has twice come twice. Pure: no
//! clock in here. Zones are the system's.
use jiff::{
    Timestamp,
    civil::{Date, DateTime, date},
    tz::TimeZone,
};

/// Looked for within so many years of the wall clock, as the original does: `0 0 29 2 *` is found over a leap year that falls out.
const YEARS: i16 = 5;

#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    kind: Kind,
    zone: TimeZone,
}
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Fields(Masks),
    /// Seconds, at least 1.
    Every(i64),
}

/// One bit a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Masks {
    second: u64,
    minute: u64,
    hour: u32,
    /// From bit 1.
    day: u32,
    /// From bit 1.
    month: u16,
    /// Bit 0 is Sunday.
    weekday: u8,
    /// Day of month or day of week holds a star: both must fit, else one of them.
    star: bool,
}

struct Bounds {
    name: &'static str,
    min: u64,
    max: u64,
    names: &'static [&'static str],
}
const fn bounds(name: &'static str, min: u64, max: u64, names: &'static [&'static str]) -> Bounds {
    Bounds { name, min, max, names }
}
const SECOND: Bounds = bounds("second", 0, 59, &[]);
const MINUTE: Bounds = bounds("minute", 0, 59, &[]);
const HOUR: Bounds = bounds("hour", 0, 23, &[]);
const DAY: Bounds = bounds("day of month", 1, 31, &[]);
const MONTH: Bounds = bounds(
    "month",
    1,
    12,
    &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
);
const WEEKDAY: Bounds = bounds("day of week", 0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]);

impl Schedule {
    /// `zone` holds for an expression that names none. The error says what was found, and what is accepted.
    pub fn parse(text: &str, zone: &TimeZone) -> Result<Self, String> {
        let (text, zone) = match text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) {
            None => (text, zone.clone()),
            Some(rest) => {
                let (name, rest) = rest.split_once(' ').ok_or("nothing follows the time zone")?;
                let zone =
                    self::zone(name).ok_or_else(|| format!("found the time zone {name:?}, accepted: {ZONES}"))?;
                (rest.trim(), zone)
            }
        };
        let kind = match text.strip_prefix('@') {
            Some(_) => descriptor(text)?,
            None => Kind::Fields(Masks::parse(text)?),
        };
        Ok(Self { kind, zone })
    }

    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }
    /// `@every …`: its instants hang on an anchor, not on the calendar.
    pub fn is_every(&self) -> bool {
        matches!(self.kind, Kind::Every(_))
    }

    /// The first instant after this one; none if there is none within five years. `@every` counts from `after`.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.next_from(after, after)
    }
    /// As `next`, with `@every` counted from `anchor`.
    pub fn next_from(&self, anchor: Timestamp, after: Timestamp) -> Option<Timestamp> {
        match &self.kind {
            Kind::Fields(masks) => masks.next(&self.zone, after),
            Kind::Every(period) => {
                let (anchor, after) = (anchor.as_second(), whole_second(after));
                let passed = after.saturating_sub(anchor).max(0) / period;
                let due = (passed + 1).checked_mul(*period)?.checked_add(anchor)?;
                Timestamp::from_second(due).ok()
            }
        }
    }
    /// How many instants lie after `after` and not after `until`, and the last of them. Takes as long as there are days between.
    pub fn passed(&self, anchor: Timestamp, after: Timestamp, until: Timestamp) -> (u64, Option<Timestamp>) {
        if until <= after {
            return (0, None);
        }
        match &self.kind {
            Kind::Fields(masks) => masks.passed(&self.zone, after, until),
            Kind::Every(period) => {
                let beats = |at: Timestamp| at.as_second().saturating_sub(anchor.as_second()).max(0) / period;
                let (before, now) = (beats(after), beats(until));
                let last = now
                    .checked_mul(*period)
                    .and_then(|s| Timestamp::from_second(s + anchor.as_second()).ok());
                ((now - before) as u64, last.filter(|_| now > before))
            }
        }
    }
    /// The clock has shown this time once before, an hour ago or so: the second pass of an autumn night.
    pub fn is_second_pass(&self, at: Timestamp) -> bool {
        let here = self.zone.to_datetime(at);
        match self.zone.to_ambiguous_timestamp(here).offset() {
            jiff::tz::AmbiguousOffset::Fold { after, .. } => self.zone.to_offset(at) == after,
            _ => false,
        }
    }
}

/// What `zone` takes.
pub const ZONES: &str = "a name of the system's zoneinfo as \"Asia/Shanghai\"";
/// A zone by the name that the system's zoneinfo has for it. Empty: UTC; `Local`: the system's own.
pub fn zone(name: &str) -> Option<TimeZone> {
    match name {
        "" | "UTC" => return Some(TimeZone::UTC),
        "Local" => return Some(TimeZone::system()),
        _ if name.contains("..") || name.starts_with(['/', '\\']) => return None,
        _ => {}
    }
    // Looked up without regard to case here, not so by others that read the same schedule.
    let other_case = |known: &str| known != name && known.eq_ignore_ascii_case(name);
    TimeZone::get(name)
        .ok()
        .filter(|zone| !zone.iana_name().is_some_and(other_case))
}

/// The whole second that it lies in.
fn whole_second(at: Timestamp) -> i64 {
    at.as_second() - i64::from(at.subsec_nanosecond() < 0)
}

fn descriptor(text: &str) -> Result<Kind, String> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let Some(length) = text.strip_prefix("@every ") else {
                return Err(format!(
                    "found {text:?}, accepted: @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly, @every <duration>"
                ));
            };
            let nanos = duration(length).ok_or_else(|| {
                format!("found {length:?} after @every, accepted: a duration as \"90s\" or \"1h30m\"")
            })?;
            return Ok(Kind::Every((nanos / 1_000_000_000).max(1)));
        }
    };
    Masks::parse(fields).map(Kind::Fields)
}

/// Go's `time.ParseDuration`, in nanoseconds.
fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, tail) = rest.split_at(digits(rest));
        let (fraction, tail) = match tail.strip_prefix('.') {
            None => ("", tail),
            Some(tail) => tail.split_at(digits(tail)),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let (unit, tail) = tail.split_at(
            tail.find(|c: char| c == '.' || c.is_ascii_digit())
                .unwrap_or(tail.len()),
        );
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let fraction = fraction.get(..fraction.len().min(18)).unwrap_or_default();
        let part = match fraction.parse::<i64>() {
            Ok(digits) => (digits as f64 * (unit as f64 / 10f64.powi(fraction.len() as i32))) as i64,
            Err(_) => 0,
        };
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(part)?;
        rest = tail;
    }
    Some(if negative { -total } else { total })
}

impl Masks {
    fn parse(text: &str) -> Result<Self, String> {
        let fields = text.split_whitespace().collect::<Vec<_>>();
        let (second, rest) = match fields.len() {
            5 => ("0", &fields[..]),
            6 => (fields[0], &fields[1..]),
            n => {
                return Err(format!(
                    "found {n} fields, accepted: 5 (minute first) or 6 (second first)"
                ));
            }
        };
        let (day, any_day) = field(rest[2], &DAY)?;
        let (weekday, any_weekday) = field(rest[4], &WEEKDAY)?;
        Ok(Self {
            second: field(second, &SECOND)?.0,
            minute: field(rest[0], &MINUTE)?.0,
            hour: field(rest[1], &HOUR)?.0 as u32,
            day: day as u32,
            month: field(rest[3], &MONTH)?.0 as u16,
            weekday: weekday as u8,
            star: any_day || any_weekday,
        })
    }

    /// Within a stretch of constant offset wall-clock time and time run alike: look there, and if nothing is due in it, in the next.
    fn next(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        let mut from = Timestamp::from_second(whole_second(after).checked_add(1)?).ok()?;
        let last_year = zone.to_datetime(from).year().saturating_add(YEARS);
        loop {
            let offset = zone.to_offset(from);
            let due = self.next_wall(offset.to_datetime(from), last_year);
            let due = due.and_then(|wall| offset.to_timestamp(wall).ok());
            let ends = zone.following(from).next().map(|transition| transition.timestamp());
            match (due, ends) {
                (Some(due), Some(ends)) if due >= ends => from = ends,
                (Some(due), _) => return Some(due),
                // The next stretch may lie in a later year by the calendar only.
                (None, Some(ends)) if zone.to_datetime(ends).year() <= last_year => from = ends,
                (None, _) => return None,
            }
        }
    }

    fn passed(&self, zone: &TimeZone, after: Timestamp, until: Timestamp) -> (u64, Option<Timestamp>) {
        let (mut count, mut last) = (0, None);
        let Ok(end) = Timestamp::from_second(whole_second(until) + 1) else {
            return (0, None);
        };
        let mut from = Timestamp::from_second(whole_second(after) + 1).unwrap_or(end);
        while from < end {
            let offset = zone.to_offset(from);
            let ends = zone
                .following(from)
                .next()
                .map_or(end, |transition| transition.timestamp().min(end));
            let (n, wall) = self.walls(offset.to_datetime(from), offset.to_datetime(ends));
            count += n;
            last = wall.and_then(|wall| offset.to_timestamp(wall).ok()).or(last);
            from = ends;
        }
        (count, last)
    }
    /// Fitting times on the calendar from `from` on and before `to`: how many, and the last.
    fn walls(&self, from: DateTime, to: DateTime) -> (u64, Option<DateTime>) {
        let second_of_day = |at: DateTime| at.hour() as u32 * 3600 + at.minute() as u32 * 60 + at.second() as u32;
        let (mut count, mut last) = (0, None);
        let mut day = from.date();
        while day <= to.date() {
            if self.month & 1 << day.month() != 0 && self.days(day.year(), day.month()) & 1 << day.day() != 0 {
                let least = if day == from.date() { second_of_day(from) } else { 0 };
                let most = if day == to.date() { second_of_day(to) } else { 86_400 };
                let n = self.times_before(most) - self.times_before(least);
                if n > 0 {
                    count += u64::from(n);
                    last = Some((day, most));
                }
            }
            match day.tomorrow() {
                Ok(tomorrow) => day = tomorrow,
                Err(_) => break,
            }
        }
        let last = last.map(|(day, most): (Date, u32)| {
            // The last one is where the count of those before reaches its end.
            let wanted = self.times_before(most);
            let (mut low, mut high) = (0, most);
            while low + 1 < high {
                let middle = low + (high - low) / 2;
                if self.times_before(middle) < wanted {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            let at = low as i32;
            day.at((at / 3600) as i8, (at / 60 % 60) as i8, (at % 60) as i8, 0)
        });
        (count, last)
    }
    /// How many fitting times a day has before that second of it.
    fn times_before(&self, second_of_day: u32) -> u32 {
        let below = |mask: u64, n: u32| (mask & 1u64.checked_shl(n).map_or(u64::MAX, |bit| bit - 1)).count_ones();
        let is = |mask: u64, n: u32| u32::from(n < 64 && mask & 1 << n != 0);
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        let (minutes, seconds) = (self.minute.count_ones(), self.second.count_ones());
        let hours = u64::from(self.hour);
        below(hours, hour) * minutes * seconds
            + is(hours, hour)
                * (below(self.minute, minute) * seconds + is(self.minute, minute) * below(self.second, second))
    }

    /// The first fitting time on the calendar, `from` itself included.
    fn next_wall(&self, from: DateTime, last_year: i16) -> Option<DateTime> {
        let today = u32::from(from.day() as u8);
        let first = self.time_from(0, 0, 0)?;
        let (mut year, mut month, mut least) = (from.year(), from.month(), today);
        if self.month & 1 << month != 0
            && self.days(year, month) & 1 << today != 0
            && let Some(time) = self.time_from(from.hour(), from.minute(), from.second())
        {
            return at(from.date(), time);
        }
        least += 1;
        while year <= last_year {
            if self.month & 1 << month != 0 {
                let days = self.days(year, month) & u32::MAX.checked_shl(least).unwrap_or(0);
                if days != 0 {
                    return at(date(year, month, days.trailing_zeros() as i8), first);
                }
            }
            least = 1;
            (year, month) = match month {
                12 => (year.checked_add(1).filter(|year| *year <= 9999)?, 1),
                _ => (year, month + 1),
            };
        }
        None
    }

    /// The days of a month that fit, from bit 1.
    fn days(&self, year: i16, month: i8) -> u32 {
        let first = date(year, month, 1);
        let there = ((1u64 << (first.days_in_month() + 1)) - 2) as u32;
        // Bit 0 stands for the first of the month, whatever weekday it is; then five weeks of the same.
        let starts = first.weekday().to_sunday_zero_offset() as u32;
        let week = u64::from(self.weekday) | u64::from(self.weekday) << 7;
        let week = week >> starts & 0x7f;
        let weekdays = ((week | week << 7 | week << 14 | week << 21 | week << 28) << 1) as u32;
        there
            & match self.star {
                true => self.day & weekdays,
                false => self.day | weekdays,
            }
    }

    /// The first fitting time of day that is not before this one.
    fn time_from(&self, hour: i8, minute: i8, second: i8) -> Option<(i8, i8, i8)> {
        let least = |mask: u64, from: i8| {
            let left = mask & u64::MAX.checked_shl(from as u32).unwrap_or(0);
            (left != 0).then(|| left.trailing_zeros() as i8)
        };
        let (first_minute, first_second) = (least(self.minute, 0)?, least(self.second, 0)?);
        let hours = u64::from(self.hour);
        if hours & 1 << hour != 0 {
            if self.minute & 1 << minute != 0
                && let Some(second) = least(self.second, second)
            {
                return Some((hour, minute, second));
            }
            if let Some(minute) = least(self.minute, minute + 1) {
                return Some((hour, minute, first_second));
            }
        }
        Some((least(hours, hour + 1)?, first_minute, first_second))
    }
}
fn at(day: Date, (hour, minute, second): (i8, i8, i8)) -> Option<DateTime> {
    Some(day.at(hour, minute, second, 0))
}

/// One field: its bits, and whether one of its parts is a star. Empty parts of a list are dropped, as the original does.
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let mut all = (0, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (bits, star) =
            range(part, bounds).map_err(|accepted| format!("{}: found {part:?}, accepted: {accepted}", bounds.name))?;
        all = (all.0 | bits, all.1 | star);
    }
    Ok(all)
}
/// `*`, `7`, `1-5`, each with or without `/step`; `7/step` goes on to the end.
fn range(part: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let accepted = || match bounds.names {
        [] => format!("*, or {} to {}, as 1, 1-5, */2 or 1-5/2", bounds.min, bounds.max),
        names => format!(
            "*, {} to {} or {} to {}, as 1, 1-5, */2 or 1-5/2",
            bounds.min,
            bounds.max,
            names[0],
            names[names.len() - 1]
        ),
    };
    let mut slashes = part.split('/');
    let mut hyphens = slashes.next().unwrap_or_default().split('-');
    let (step, more) = (slashes.next(), slashes.next());
    let (low, high, too_many) = (hyphens.next().unwrap_or_default(), hyphens.next(), hyphens.next());
    let star = matches!(low, "*" | "?");
    let number = |text: &str| {
        let named = bounds.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        match named {
            Some(at) => Some(at as u64 + bounds.min),
            None => text.parse::<u64>().ok(),
        }
    };
    let (start, end) = match (star, high) {
        (true, _) => (bounds.min, bounds.max),
        (false, _) if too_many.is_some() => return Err("one hyphen".into()),
        (false, None) => {
            let start = number(low).ok_or_else(accepted)?;
            (start, if step.is_some() { bounds.max } else { start })
        }
        (false, Some(high)) => (number(low).ok_or_else(accepted)?, number(high).ok_or_else(accepted)?),
    };
    let step = match (step, more) {
        (_, Some(_)) => return Err("one slash".into()),
        (None, _) => 1,
        (Some(step), _) => match step.parse::<i64>() {
            Ok(step) if step > 0 => step as u64,
            _ => return Err("a step from 1 on".into()),
        },
    };
    if start < bounds.min || end > bounds.max || start > end {
        return Err(accepted());
    }
    let bits = (start..=end)
        .step_by(step.min(64) as usize)
        .fold(0, |bits, n| bits | 1 << n);
    Ok((bits, star && step == 1))
}

#[cfg(test)]
mod tests;
