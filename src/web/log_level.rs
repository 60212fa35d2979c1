//! `/api/v1/log-level`: `{level}`. PUT takes `level` and, to go back by itself, `for=5m`: in the query, or as a JSON object.
use std::time::Duration;

use actix_web::{
    HttpResponse,
    http::StatusCode,
    web::{Bytes, Data, Payload, Query},
};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::{
    messages::control::{AskAgent, SetLogLevel},
    web::{Problem, State, guard::LARGEST_BODY},
};

/// A body comes in this time, or not at all: a connection is held no longer.
const BODY_WITHIN: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Shown {
    level: String,
    /// When it goes back by itself; null: it stays.
    for_seconds: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    level: Option<String>,
    r#for: Option<String>,
}

pub async fn show(state: Data<State>) -> Result<HttpResponse, Problem> {
    let agent = state.ask.put(&state.ask.agent, AskAgent).await?;
    Ok(HttpResponse::Ok().json(serde_json::json!({ "level": agent.log_level })))
}

pub async fn set(state: Data<State>, Query(query): Query<Asked>, body: Payload) -> Result<HttpResponse, Problem> {
    let order = understand(query, &read_body(body).await?)?;
    state.ask.put(&state.ask.log_level, order).await?;
    Ok(HttpResponse::Ok().json(Shown {
        level: order.level.as_str().to_lowercase(),
        for_seconds: order.revert_after.map(|time| time.as_secs_f64()),
    }))
}

/// A request's body, within the bounds of all.
pub async fn read_body(body: Payload) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_WITHIN, body.to_bytes_limited(LARGEST_BODY)).await {
        Ok(Ok(Ok(bytes))) => Ok(bytes),
        Ok(Ok(Err(error))) => Err(Problem::bad_request(format!("could not read the body: {error}"))),
        Ok(Err(_)) => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a request body may have {LARGEST_BODY} bytes at most"),
        )),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not come within {} s", BODY_WITHIN.as_secs()),
        )),
    }
}

fn understand(query: Asked, body: &[u8]) -> Result<SetLogLevel, Problem> {
    let body = match body {
        [] => Asked::default(),
        json => serde_json::from_slice(json).map_err(|error| {
            Problem::bad_request(format!("could not read the body as JSON {{level, for}}: {error}"))
        })?,
    };
    let once = |name, query: Option<String>, body: Option<String>| match (query, body) {
        (Some(_), Some(_)) => Err(Problem::bad_request(format!(
            "`{name}` stands in the query and in the body"
        ))),
        (query, body) => Ok(query.or(body)),
    };
    let level = once("level", query.level, body.level)?.unwrap_or_default();
    let level = level.parse::<slog::Level>().map_err(|()| {
        Problem::bad_request(format!(
            "level: found `{level}`, accepted: critical, error, warning, info, debug, trace"
        ))
    })?;
    let revert_after = once("for", query.r#for, body.r#for)?
        .map(|text| span(&text))
        .transpose()?;
    Ok(SetLogLevel { level, revert_after })
}

fn span(text: &str) -> Result<Duration, Problem> {
    let refused = || Problem::bad_request(format!("for: found `{text}`, accepted: a time from 1s to 24h, as 5m"));
    let time = text.parse::<SignedDuration>().map_err(|_| refused())?;
    let time = Duration::try_from(time).map_err(|_| refused())?;
    let possible = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
    possible.contains(&time).then_some(time).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_times() {
        let ask = |query: (&str, &str), body: &str| {
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let query = Asked {
                level: given(query.0),
                r#for: given(query.1),
            };
            understand(query, body.as_bytes()).map_err(|problem| problem.detail().to_owned())
        };
        let order = |level, seconds: Option<u64>| {
            Ok(SetLogLevel {
                level,
                revert_after: seconds.map(Duration::from_secs),
            })
        };
        use slog::Level::*;
        assert_eq!(ask(("debug", ""), ""), order(Debug, None));
        assert_eq!(ask(("debug", "5m"), ""), order(Debug, Some(300)));
        assert_eq!(
            ask(("", "1h 30m"), r#"{"level":"warning"}"#),
            order(Warning, Some(5400))
        );
        assert_eq!(
            ask(("", ""), r#"{"level":"TRACE","for":"90s"}"#),
            order(Trace, Some(90))
        );
        for (query, body, part) in [
            (("", ""), "", "level: found ``"),
            (("loud", ""), "", "level: found `loud`"),
            (("info", "0s"), "", "for: found `0s`"),
            (("info", "-5m"), "", "for: found `-5m`"),
            (("info", "25h"), "", "for: found `25h`"),
            (("info", "5"), "", "for: found `5`"),
            (
                ("info", ""),
                r#"{"level":"info"}"#,
                "`level` stands in the query and in the body",
            ),
            (("info", ""), r#"{"fore":"5m"}"#, "unknown field `fore`"),
            (("info", ""), "[", "as JSON"),
        ] {
            let error = ask(query, body).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
