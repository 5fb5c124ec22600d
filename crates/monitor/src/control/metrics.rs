//! What a machine did, in numbers that only grow, and their text for Prometheus.
//!
//! Counting takes no lock and no call: vCPUs and devices count while they work.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use evenkeel_sys::Exit;

use super::protocol::Phase;

/// The kinds of exits, by the name of their counter.
const EXITS: [&str; 14] = [
    "interrupted",
    "port-write",
    "port-read",
    "memory-write",
    "memory-read",
    "halted",
    "shutdown",
    "ioapic-eoi",
    "system-event",
    "msr",
    "hypercall",
    "fail-entry",
    "internal-error",
    "other",
];

fn place(exit: &Exit) -> usize {
    match exit {
        Exit::Interrupted => 0,
        Exit::PortWrite { .. } => 1,
        Exit::PortRead { .. } => 2,
        Exit::MemoryWrite { .. } => 3,
        Exit::MemoryRead { .. } => 4,
        Exit::Halted => 5,
        Exit::Shutdown => 6,
        Exit::IoapicEoi(_) => 7,
        Exit::SystemEvent(..) => 8,
        Exit::Msr { .. } => 9,
        Exit::Hypercall(..) => 10,
        Exit::FailEntry(_) => 11,
        Exit::InternalError(..) => 12,
        Exit::Other(_) => 13,
    }
}

/// What a device did since the machine was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name on the board.
    pub name: String,
    /// Requests or frames.
    pub requests: u64,
    /// Bytes of data, both ways.
    pub bytes: u64,
}

/// Something that is done now and then, and takes time.
#[derive(Debug, Default)]
struct Timed {
    count: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
}

impl Timed {
    fn add(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
        self.longest.fetch_max(nanos, Relaxed);
    }

    fn text(&self, text: &mut String, name: &str, what: &str) {
        let seconds = |nanos: &AtomicU64| nanos.load(Relaxed) as f64 / 1e9;
        head(text, &format!("{name}_seconds"), "summary", &format!("How long {what} took."));
        let _ = writeln!(text, "evenkeel_{name}_seconds_sum {}", seconds(&self.nanos));
        let _ = writeln!(text, "evenkeel_{name}_seconds_count {}", self.count.load(Relaxed));
        head(text, &format!("{name}_longest_seconds"), "gauge", &format!("The longest of {what}."));
        let _ = writeln!(text, "evenkeel_{name}_longest_seconds {}", seconds(&self.longest));
    }
}

/// The counters of a machine.
#[derive(Debug, Default)]
pub struct Metrics {
    exits: [AtomicU64; EXITS.len()],
    pauses: Timed,
    standstill: Timed,
    snapshots: Timed,
    snapshot_bytes: AtomicU64,
    failures: AtomicU64,
    clients: AtomicU64,
    refused: AtomicU64,
}

impl Metrics {
    /// A vCPU came out of the guest.
    pub fn exit(&self, exit: &Exit) {
        self.exits[place(exit)].fetch_add(1, Relaxed);
    }

    /// The machine came to stand still, which took this long.
    pub fn paused(&self, took: Duration) {
        self.pauses.add(took);
    }

    /// The guest went on after it had stood still for this long.
    pub fn stood_still(&self, lasted: Duration) {
        self.standstill.add(lasted);
    }

    /// The machine was saved.
    pub fn saved(&self, took: Duration, bytes: u64) {
        self.snapshots.add(took);
        self.snapshot_bytes.fetch_add(bytes, Relaxed);
    }

    /// Something that was asked for was tried and did not succeed.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// A client came; or was turned away.
    pub fn client(&self, served: bool) {
        if served { &self.clients } else { &self.refused }.fetch_add(1, Relaxed);
    }

    /// As Prometheus reads it (text format 0.0.4).
    pub fn text(&self, phase: Phase, uptime: Duration, devices: &[Device]) -> String {
        let mut text = String::new();
        head(&mut text, "phase", "gauge", "Where the machine's life is: 1 for one of the phases.");
        for each in Phase::ALL {
            let _ = writeln!(text, "evenkeel_phase{{phase=\"{}\"}} {}", each.name(), u8::from(each == phase));
        }
        head(&mut text, "uptime_seconds", "gauge", "Since the control socket is served.");
        let _ = writeln!(text, "evenkeel_uptime_seconds {}", uptime.as_secs_f64());
        head(&mut text, "exits_total", "counter", "How often vCPUs came out of the guest, by reason.");
        for (kind, count) in EXITS.iter().zip(&self.exits) {
            let _ = writeln!(text, "evenkeel_exits_total{{kind=\"{kind}\"}} {}", count.load(Relaxed));
        }
        self.pauses.text(&mut text, "pause", "bringing the machine to a standstill");
        self.standstill.text(&mut text, "standstill", "standstills of the guest");
        self.snapshots.text(&mut text, "snapshot", "snapshots");
        for (name, count, help) in [
            ("snapshot_bytes_total", &self.snapshot_bytes, "Bytes of all snapshots."),
            ("failures_total", &self.failures, "Pauses, resumes and snapshots that did not succeed."),
            ("control_clients_total", &self.clients, "Clients of the control socket that were served."),
            ("control_refused_total", &self.refused, "Clients that were turned away."),
        ] {
            head(&mut text, name, "counter", help);
            let _ = writeln!(text, "evenkeel_{name} {}", count.load(Relaxed));
        }
        if devices.is_empty() {
            return text;
        }
        head(&mut text, "device_requests_total", "counter", "Requests that a device answered.");
        for device in devices {
            let name = escaped(&device.name);
            let _ = writeln!(text, "evenkeel_device_requests_total{{device=\"{name}\"}} {}", device.requests);
        }
        head(&mut text, "device_bytes_total", "counter", "Bytes between a device and the guest, both ways.");
        for device in devices {
            let name = escaped(&device.name);
            let _ = writeln!(text, "evenkeel_device_bytes_total{{device=\"{name}\"}} {}", device.bytes);
        }
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP evenkeel_{name} {help}\n# TYPE evenkeel_{name} {kind}");
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_its_head_once_and_says_what_was_counted() {
        let disk = Device { name: "a\"b".to_owned(), requests: 3, bytes: 528 };
        let metrics = Metrics::default();
        metrics.exit(&Exit::Halted);
        metrics.exit(&Exit::Halted);
        metrics.exit(&Exit::Other(99));
        metrics.paused(Duration::from_millis(2));
        metrics.paused(Duration::from_millis(1));
        metrics.saved(Duration::from_secs(1), 4096);
        let text = metrics.text(Phase::Paused, Duration::from_secs(5), &[disk]);
        for line in [
            "evenkeel_phase{phase=\"paused\"} 1",
            "evenkeel_phase{phase=\"running\"} 0",
            "evenkeel_exits_total{kind=\"halted\"} 2",
            "evenkeel_exits_total{kind=\"other\"} 1",
            "evenkeel_pause_seconds_sum 0.003",
            "evenkeel_pause_seconds_count 2",
            "evenkeel_pause_longest_seconds 0.002",
            "evenkeel_snapshot_bytes_total 4096",
            "evenkeel_device_requests_total{device=\"a\\\"b\"} 3",
            "evenkeel_device_bytes_total{device=\"a\\\"b\"} 528",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let types: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        let once: std::collections::BTreeSet<&&str> = types.iter().collect();
        assert_eq!(types.len(), once.len());
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = name.trim_end_matches("_sum").trim_end_matches("_count");
            assert!(types.iter().any(|t| t.starts_with(&format!("# TYPE {family} "))), "{line}");
        }
    }
}
