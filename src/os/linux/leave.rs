//! An agent that a job starts is no part of that job's run: what the run's own agent would find it by is taken off.
use std::ffi::{CStr, c_char};

use super::cgroup::leave_run_cgroup;

/// What a run's processes are known by.
const MARKS: [&str; 2] = ["AGENT_RUN_ID", "AGENT_TASK_ID"];

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// Leaves the run's cgroup, and takes its marks out of the environment: also out of the memory that others read as
/// `/proc/<pid>/environ`, which is that of the program's start.
///
/// # Safety
/// There must be no other thread, and nobody may hold on to a variable of C's.
pub unsafe fn leave_run() {
    if MARKS.iter().all(|mark| std::env::var_os(mark).is_none()) {
        return;
    }
    leave_run_cgroup();
    // SAFETY: one thread, so nobody changes the list. It ends in a null pointer, each before it points to a string that ends in a zero;
    // these lie in memory of ours that may be written. What is written keeps every length.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            let text = CStr::from_ptr(*at);
            let marked = MARKS.iter().any(|mark| {
                text.to_bytes()
                    .strip_prefix(mark.as_bytes())
                    .is_some_and(|rest| rest.starts_with(b"="))
            });
            if marked {
                let length = text.to_bytes().len();
                std::ptr::write_bytes((*at).cast::<u8>(), b'_', length);
            }
            at = at.add(1);
        }
        for mark in MARKS {
            std::env::remove_var(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    /// In a process of its own: this one has threads.
    #[test]
    fn the_marks_of_a_run_are_gone_for_others_too() {
        const CHILD: &str = "LUFFLY_TEST_LEAVES_A_RUN";
        if std::env::var_os(CHILD).is_some() {
            let own = std::process::id() as i32;
            assert!(super::super::started_with(own, "AGENT_RUN_ID=A"));
            // SAFETY: the harness's other threads wait; none looks at the environment.
            unsafe { super::leave_run() };
            assert!(std::env::var_os("AGENT_RUN_ID").is_none());
            assert_eq!(super::super::start_variable(own, "AGENT_RUN_ID"), None);
            assert!(super::super::start_variable(own, CHILD).is_some(), "others stay");
            return;
        }
        let name = "os::linux::leave::tests::the_marks_of_a_run_are_gone_for_others_too";
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1"])
            .env(CHILD, "1")
            .env("AGENT_RUN_ID", "A")
            .env("AGENT_TASK_ID", "17")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
    }
}
