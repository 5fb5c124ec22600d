//! The same work on many hosts, two at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::host::Host;

/// Does `work` for every host, two at a time, and gives each result to `done` in the order of `hosts`. `begun` is told
/// when the work on a host starts. One that fails does not stop the others.
pub fn each<T: Send>(
    hosts: &[Host],
    begun: impl Fn(usize, &Host) + Sync,
    work: impl Fn(&Host) -> T + Sync,
    mut done: impl FnMut(&Host, T),
) {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..hosts.len().min(2) {
            let sender = sender.clone();
            scope.spawn(|| {
                let sender = sender;
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(host) = hosts.get(index) else { return };
                    begun(index, host);
                    // Nobody receives any more when the other side panicked.
                    let _ = sender.send((index, work(host)));
                }
            });
        }
        drop(sender);
        let mut waiting: Vec<Option<T>> = hosts.iter().map(|_| None).collect();
        let mut told = 0;
        for (index, result) in receiver {
            waiting[index] = Some(result);
            while let Some(result) = waiting.get_mut(told).and_then(Option::take) {
                done(&hosts[told], result);
                told += 1;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_come_in_order() {
        let hosts = crate::hosts();
        let mut seen = Vec::new();
        each(
            &hosts,
            |_, _| {},
            |host| {
                // The first takes longest.
                if host.name == hosts[0].name {
                    thread::sleep(Duration::from_millis(50));
                }
                host.name.clone()
            },
            |host, result| {
                assert_eq!(host.name, result);
                seen.push(result);
            },
        );
        assert_eq!(seen, hosts.iter().map(|host| host.name.clone()).collect::<Vec<_>>());
    }
}
