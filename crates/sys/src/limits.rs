//! What a limit of this process does to it.

use std::ffi::c_int;

use crate::kick::signal;

const SIGXFSZ: c_int = 25;
/// `SIG_IGN`.
const IGNORE: usize = 1;

/// From now on a file that would become longer than this process may make one (RLIMIT_FSIZE) takes no more, with EFBIG, and
/// SIGXFSZ does not end the process. For this process and what it starts.
pub fn outlive_file_limit() {
    // SAFETY: a number of a signal, and no handler at all.
    unsafe {
        signal(SIGXFSZ, IGNORE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_is_ignored_from_then_on() {
        let ignored = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap() & 1 << (SIGXFSZ - 1) != 0
        };
        assert!(!ignored());
        outlive_file_limit();
        assert!(ignored());
    }
}
