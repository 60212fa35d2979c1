//! `cmd=heap`, `cmd=gc`, `cmd=memprof`: what jemalloc knows. Without the feature `jemalloc` the answer is 501.
#[cfg(feature = "jemalloc")]
pub use with::*;
#[cfg(not(feature = "jemalloc"))]
pub use without::*;

#[cfg(feature = "jemalloc")]
mod with {
    use std::{
        fmt::Write, fs::File, io::Read, os::unix::ffi::OsStrExt, ptr::null_mut, sync::atomic::AtomicBool,
        time::Duration,
    };

    use actix_web::{
        HttpResponse,
        http::{StatusCode, header},
        web,
    };
    use tikv_jemalloc_ctl::{Error, epoch, profiling, raw, stats, stats_print};

    use super::super::{Turn, text};
    use crate::{os, web::Problem};

    static TAKEN: AtomicBool = AtomicBool::new(false);

    fn failed(what: &'static str) -> impl Fn(Error) -> Problem {
        move |error| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("could not {what}: the allocator answers: {error}"),
            )
        }
    }

    /// In bytes; see jemalloc(3), `stats.*`.
    struct Sizes {
        allocated: usize,
        active: usize,
        metadata: usize,
        resident: usize,
        mapped: usize,
        retained: usize,
    }
    impl Sizes {
        fn now() -> Result<Self, Error> {
            epoch::advance()?; // what was counted until now
            Ok(Self {
                allocated: stats::allocated::read()?,
                active: stats::active::read()?,
                metadata: stats::metadata::read()?,
                resident: stats::resident::read()?,
                mapped: stats::mapped::read()?,
                retained: stats::retained::read()?,
            })
        }
    }

    pub fn heap() -> Result<HttpResponse, Problem> {
        let sizes = Sizes::now().map_err(failed("read the allocator's statistics"))?;
        let mut out = String::from("bytes\n");
        for (name, bytes, about) in [
            ("allocated", sizes.allocated, "held by the agent"),
            ("active", sizes.active, "in pages that hold any of it"),
            ("metadata", sizes.metadata, "the allocator's own"),
            ("resident", sizes.resident, "in memory, with pages not yet given back"),
            ("mapped", sizes.mapped, "address space"),
            ("retained", sizes.retained, "address space kept without memory"),
        ] {
            let _ = writeln!(out, "{name:<10} {bytes:>14}  {about}");
        }
        let mut details = Vec::new();
        // Writing to a Vec does not fail. Sums only: the tables of each arena and size are pages long.
        let mut options = stats_print::Options::default();
        options.skip_per_arena = true;
        options.skip_bin_size_classes = true;
        options.skip_large_size_classes = true;
        let _ = stats_print::stats_print(&mut details, options);
        let _ = write!(out, "\n{}", String::from_utf8_lossy(&details));
        Ok(text(out))
    }

    pub fn give_back() -> Result<HttpResponse, Problem> {
        let before = Sizes::now().map_err(failed("read the allocator's statistics"))?;
        purge().map_err(|code| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!(
                    "could not purge the allocator's arenas: {}",
                    std::io::Error::from_raw_os_error(code)
                ),
            )
        })?;
        let after = Sizes::now().map_err(failed("read the allocator's statistics"))?;
        Ok(text(format!(
            "resident before {} after {} given back {} bytes; allocated {} bytes\n",
            before.resident,
            after.resident,
            before.resident.saturating_sub(after.resident),
            after.allocated,
        )))
    }

    /// Unused pages of all arenas go back to the system. The error is an errno.
    fn purge() -> Result<(), i32> {
        // 4096 is MALLCTL_ARENAS_ALL. This control takes and gives no value, which the `ctl` crate cannot say.
        const EVERY_ARENA: &std::ffi::CStr = c"arena.4096.purge";
        // SAFETY: the name ends in NUL, and null pointers are what a control without value asks for.
        match unsafe { tikv_jemalloc_sys::mallctl(EVERY_ARENA.as_ptr(), null_mut(), null_mut(), null_mut(), 0) } {
            0 => Ok(()),
            code => Err(code),
        }
    }

    const ACTIVE: &[u8] = b"prof.active\0";
    fn is_sampling() -> Result<bool, Error> {
        // SAFETY: `prof.active` is a bool.
        unsafe { raw::read(ACTIVE) }
    }
    fn sample(on: bool) -> Result<(), Error> {
        // SAFETY: `prof.active` is a bool.
        unsafe { raw::write(ACTIVE, on) }
    }
    /// Ends the sampling that we began, also if the client leaves.
    struct Sampling;
    impl Drop for Sampling {
        fn drop(&mut self) {
            let _ = sample(false); // it was just switched on the same way
        }
    }

    /// All allocations that were sampled and live. If sampling is always on (`prof_active:true`) that is the whole heap, at once;
    /// otherwise it is on for `time`, and the profile holds what was allocated since and is kept.
    pub async fn profile(time: Duration) -> Result<HttpResponse, Problem> {
        if !profiling::prof::read().map_err(failed("ask whether profiling is built in"))? {
            return Err(Problem::unavailable(
                "heap profiling is off: start the agent with prof:true among jemalloc's settings, \
                 for example _RJEM_MALLOC_CONF=prof:true,prof_active:false",
            ));
        }
        let _turn = Turn::take(&TAKEN)?;
        if is_sampling().map_err(failed("ask whether sampling is on"))? {
            return dump().await;
        }
        sample(true).map_err(failed("begin to sample"))?;
        let _sampling = Sampling;
        tokio::time::sleep(time).await;
        dump().await
    }

    async fn dump() -> Result<HttpResponse, Problem> {
        // It stops the process's allocations meanwhile and reads /proc/self/maps: not on the thread that answers others.
        let dumped = web::block(|| {
            let (mut file, path) = os::memory_file("heap profile").map_err(|error| error.to_string())?;
            write_to(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
            read_all(&mut file).map_err(|error| error.to_string())
        });
        let refused = |error: String| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("could not dump the heap profile: {error}"),
            )
        };
        let body = dumped
            .await
            .map_err(|error| refused(error.to_string()))?
            .map_err(refused)?;
        Ok(HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .insert_header((header::CONTENT_DISPOSITION, "attachment; filename=\"agent.heap\""))
            .body(body))
    }
    fn write_to(path: &[u8]) -> Result<(), Error> {
        let name = [path, b"\0"].concat();
        // SAFETY: `prof.dump` takes the address of a NUL-ended name, which lives until the call is over.
        unsafe { raw::write(b"prof.dump\0", name.as_ptr()) }
    }
    fn read_all(file: &mut File) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(not(feature = "jemalloc"))]
mod without {
    use std::time::Duration;

    use actix_web::{HttpResponse, http::StatusCode};

    use crate::web::Problem;

    fn no_allocator() -> Result<HttpResponse, Problem> {
        Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "this agent was built without the feature jemalloc: the system's allocator tells nothing",
        ))
    }
    pub fn heap() -> Result<HttpResponse, Problem> {
        no_allocator()
    }
    pub fn give_back() -> Result<HttpResponse, Problem> {
        no_allocator()
    }
    pub async fn profile(_: Duration) -> Result<HttpResponse, Problem> {
        no_allocator()
    }
}

#[cfg(all(test, feature = "jemalloc"))]
mod tests {
    #[actix_rt::test]
    async fn profiling_that_is_off_says_how_to_switch_it_on() {
        // Nobody asked jemalloc for it in the library's own test binary.
        let refused = super::profile(std::time::Duration::from_secs(1)).await.unwrap_err();
        assert!(
            refused
                .detail()
                .starts_with("heap profiling is off: start the agent with prof:true")
        );
        assert_eq!(actix_web::ResponseError::status_code(&refused), 503);
    }
}
