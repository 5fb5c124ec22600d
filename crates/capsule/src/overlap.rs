//! Work on many chunks beside what has to be done in their order: packing while the file is written, verifying while it is read.
//!
//! Threads take chunks from the front; the caller, who alone may touch the file, takes the results in order, and helps where the
//! next one is not there yet. On one core it does everything itself.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that a thread takes at a time: it asks for the next some thousand times a second.
const TAKE: usize = 256 << 10;

/// How many threads are worth it: packing and verifying is bound by the CPU, and a guest that is stopped waits for it.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(8)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What threads have done and not done.
struct Shared<U> {
    next: AtomicUsize,
    take: usize,
    slots: Vec<Mutex<Option<U>>>,
    /// A thread has come to the end of what it took, or died.
    moved: (Mutex<()>, Condvar),
    dead: AtomicBool,
}

impl<U> Shared<U> {
    /// The next chunks that nobody took.
    fn take(&self) -> Option<Range<usize>> {
        let from = self.next.fetch_add(self.take, Ordering::Relaxed);
        (from < self.slots.len()).then(|| from..(from + self.take).min(self.slots.len()))
    }

    fn tell(&self) {
        // Whoever looks and then waits holds the lock meanwhile.
        drop(lock(&self.moved.0));
        self.moved.1.notify_all();
    }
}

/// Tells that a thread panicked: the caller must not wait for what it took.
struct Alive<'s, U>(&'s Shared<U>);

impl<U> Drop for Alive<'_, U> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.dead.store(true, Ordering::SeqCst);
            self.0.next.store(self.0.slots.len(), Ordering::SeqCst);
            self.0.tell();
        }
    }
}

/// Does `work` for each item, on several threads if they hold so much that it is worth it; `meanwhile` is done by the caller while
/// they begin; then `sink` gets the results in order, until it fails.
pub(crate) fn each<T: Sync, U: Send, C: Default, E, M>(
    items: &[T],
    bytes: usize,
    work: impl Fn(&mut C, &T) -> U + Sync,
    meanwhile: impl FnOnce() -> M,
    mut sink: impl FnMut(usize, U) -> Result<(), E>,
) -> (M, Result<(), E>) {
    let others = if bytes < 1 << 20 { 0 } else { threads() - 1 };
    if others == 0 || items.len() < 2 {
        let done = meanwhile();
        let mut context = C::default();
        let mut all = items.iter().enumerate();
        return (done, all.try_for_each(|(i, item)| sink(i, work(&mut context, item))));
    }
    let shared = Shared {
        next: AtomicUsize::new(0),
        take: (TAKE * items.len() / bytes).clamp(1, items.len()),
        slots: items.iter().map(|_| Mutex::new(None)).collect(),
        moved: (Mutex::new(()), Condvar::new()),
        dead: AtomicBool::new(false),
    };
    let some = |context: &mut C, range: Range<usize>| {
        for i in range {
            let done = work(context, &items[i]);
            *lock(&shared.slots[i]) = Some(done);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..others {
            scope.spawn(|| {
                let _alive = Alive(&shared);
                let mut context = C::default();
                while let Some(range) = shared.take() {
                    some(&mut context, range);
                    shared.tell();
                }
            });
        }
        let _alive = Alive(&shared);
        let done = meanwhile();
        let mut context = C::default();
        let given = (0..items.len()).try_for_each(|i| {
            let result = loop {
                if let Some(result) = lock(&shared.slots[i]).take() {
                    break result;
                }
                if let Some(range) = shared.take() {
                    some(&mut context, range);
                    continue;
                }
                let mut guard = lock(&shared.moved.0);
                // Looked at under the lock: who fills it tells afterwards.
                while lock(&shared.slots[i]).is_none() {
                    assert!(!shared.dead.load(Ordering::SeqCst), "a thread that packs or verifies has died");
                    guard = shared.moved.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
            };
            sink(i, result)
        });
        // What nobody wants any more is not done.
        shared.next.store(items.len(), Ordering::SeqCst);
        (done, given)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are worth threads.
    const MANY: usize = 64 << 20;

    #[test]
    fn results_come_in_order_and_once() {
        for count in [0, 1, 2, 7, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let mut got = Vec::new();
            let slow = |_: &mut (), item: &usize| {
                if item.is_multiple_of(3) {
                    std::thread::yield_now();
                }
                item * 2
            };
            let sink = |i, result| {
                assert_eq!(result, 2 * i);
                got.push(i);
                Ok::<(), ()>(())
            };
            let (meanwhile, done) = each(&items, MANY, slow, || 7, sink);
            assert_eq!((meanwhile, done), (7, Ok(())));
            assert_eq!(got, items);
        }
    }

    #[test]
    fn what_fails_ends_it() {
        let items: Vec<usize> = (0..1000).collect();
        let mut last = 0;
        let sink = |i, ()| {
            last = i;
            if i == 10 { Err("full") } else { Ok(()) }
        };
        assert_eq!(each(&items, MANY, |(), _| (), || (), sink).1, Err("full"));
        assert_eq!(last, 10);
    }

    #[test]
    fn a_panic_comes_out() {
        for bad in [0, 500, 999] {
            let items: Vec<usize> = (0..1000).collect();
            let work = |(): &mut (), item: &usize| assert!(*item != bad, "a bad one");
            let run = || each(&items, MANY, work, || (), |_, ()| Ok::<(), ()>(()));
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        }
    }
}
