//! What is done with, until it is closed.
//!
//! Closing a VM or a network interface waits for grace periods of the kernel, some milliseconds each: more than all
//! questions together. They pass side by side.

use evenkeel_sys::Fd;

/// Groups of file descriptors; those of one VM are a group.
#[derive(Default)]
pub(crate) struct Graves<'b>(Vec<Vec<Fd<'b>>>);

impl<'b> Graves<'b> {
    /// Keeps a group, to be closed first to last.
    pub(crate) fn add(&mut self, group: impl IntoIterator<Item = Fd<'b>>) {
        self.0.push(group.into_iter().collect());
    }

    /// Closes all, each group in a thread of its own.
    pub(crate) fn close(self) {
        std::thread::scope(|scope| {
            for group in self.0 {
                // Where there is no thread to be had, the closure is dropped, and the group with it.
                let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(group));
            }
        });
    }
}
