//! `POST /api/v1/session` trades the token for a cookie, so that a browser need not keep it; `DELETE` ends the session. Sessions
//! live in memory: a restart of the agent ends them.
use std::{sync::Mutex, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::Data,
};
use serde::Serialize;

use crate::web::{State, guard, problem::Problem};

const COOKIE: &str = "luffly_session";
/// A working day and some.
const LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// Browsers of one host's operators; the oldest goes when another comes.
const MOST: usize = 64;

/// Who is logged in, oldest first: id, and the steady time until which it holds.
#[derive(Default)]
pub struct Sessions(Mutex<Vec<(String, Duration)>>);
impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, Duration)>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    /// A new one: 256 random bits, in hex.
    fn begin(&self, now: Duration) -> Result<String, getrandom::Error> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        let id = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut all = self.lock();
        all.retain(|(_, until)| *until > now);
        if all.len() >= MOST {
            all.remove(0);
        }
        all.push((id.clone(), now + LIFE));
        Ok(id)
    }
    pub fn knows(&self, id: &str, now: Duration) -> bool {
        let all = self.lock();
        // No early end: the time tells nothing about which of them it resembles.
        all.iter()
            .filter(|(known, until)| *until > now && guard::same_secret(known, id))
            .count()
            > 0
    }
    fn end(&self, id: &str) {
        self.lock().retain(|(known, _)| !guard::same_secret(known, id));
    }
}

/// The session that a request's cookie names.
pub fn id(req: &HttpRequest) -> Option<&str> {
    req.headers()
        .get_all(header::COOKIE)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// HttpOnly: no script reads it. SameSite=Strict: no other site's page sends it. Secure where there is TLS.
fn cookie(req: &HttpRequest, value: &str, life: Duration) -> String {
    let secure = if guard::way(req).is_tls() { "; Secure" } else { "" };
    format!(
        "{COOKIE}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}",
        life.as_secs()
    )
}

#[derive(Serialize)]
struct Begun {
    expires_in: u64,
}

/// Needs the token itself (or the admin socket): a session cannot prolong itself for ever.
pub async fn begin(req: HttpRequest, state: Data<State>) -> Result<HttpResponse, Problem> {
    if id(&req).is_some() && guard::bearer(&req).is_none() {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "a new session is given for the token only: send the header Authorization: Bearer TOKEN",
        ));
    }
    let id = state
        .sessions
        .begin(state.clock.steady())
        .map_err(|error| Problem::unavailable(format!("could not get random bytes for a session: {error}")))?;
    Ok(HttpResponse::Created()
        .insert_header((header::SET_COOKIE, cookie(&req, &id, LIFE)))
        .json(Begun {
            expires_in: LIFE.as_secs(),
        }))
}

pub async fn end(req: HttpRequest, state: Data<State>) -> HttpResponse {
    if let Some(id) = id(&req) {
        state.sessions.end(id);
    }
    HttpResponse::NoContent()
        .insert_header((header::SET_COOKIE, cookie(&req, "", Duration::ZERO)))
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_few_and_end() {
        let (sessions, hour) = (Sessions::default(), Duration::from_secs(60 * 60));
        let first = sessions.begin(Duration::ZERO).unwrap();
        assert_eq!(first.len(), 64);
        assert!(sessions.knows(&first, 12 * hour - Duration::from_secs(1)));
        assert!(!sessions.knows(&first, 12 * hour));
        assert!(!sessions.knows("", hour) && !sessions.knows(&first[1..], hour));

        let second = sessions.begin(hour).unwrap();
        assert_ne!(first, second);
        for _ in 0..MOST - 1 {
            sessions.begin(hour).unwrap();
        }
        assert!(!sessions.knows(&first, hour) && sessions.knows(&second, hour));
        assert_eq!(sessions.lock().len(), MOST);
        sessions.end(&second);
        assert!(!sessions.knows(&second, hour));
        sessions.begin(20 * hour).unwrap();
        assert_eq!(sessions.lock().len(), 1, "what has ended is not kept");
    }
    #[test]
    fn cookies_are_read() {
        let named = |cookie: &str| {
            let req = actix_web::test::TestRequest::default()
                .insert_header(("cookie", cookie))
                .to_http_request();
            id(&req).map(str::to_owned)
        };
        assert_eq!(named("luffly_session=ab").as_deref(), Some("ab"));
        assert_eq!(named("a=b; luffly_session=cd;e=f").as_deref(), Some("cd"));
        assert_eq!(named("luffly_sessions=ab; xluffly_session=cd"), None);
    }
}
