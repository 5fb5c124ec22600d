//! What a guest said of itself on its console, and what is wrong with that.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use super::Journeys;

/// What a guest said of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Told {
    /// `uname -r` in it.
    pub release: String,
    /// Seconds of its own clock until its first program ran.
    pub up_after: f64,
    /// Seconds of its own clock until its end: the way between hosts counts.
    pub ended_after: f64,
    /// Its clocksource at first and in the end.
    pub clocksource: [String; 2],
    /// Passes that it told of.
    pub passes: usize,
    /// Blocks that were right in the end.
    pub right: u32,
    /// Lines of its kernel's log that complain, from before its first program ran: about CPU and board.
    pub at_boot: Vec<String>,
    /// Lines that complain from then on.
    pub complaints: Vec<String>,
    /// Lines that say that it was kept waiting while it compared its clocks, and so did not: a busy host's doing.
    pub kept_waiting: Vec<String>,
    /// What it found wrong itself.
    pub found: Vec<String>,
    /// How often its kernel began.
    pub boots: usize,
    /// It came to its end.
    pub ended: bool,
}

impl Told {
    /// From its console.
    pub fn of(console: &str) -> Told {
        let mut told = Told::default();
        let mut passes = BTreeSet::new();
        // The kernel may write to the console between two pieces of a line: what is told begins with its mark.
        for line in
            console.lines().filter_map(|line| line.split_once("JOURNEY ")).map(|(_, line)| line.trim())
        {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let value = |name: &str| {
                rest.split(' ')
                    .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                    .unwrap_or_default()
            };
            match word {
                "up" => {
                    told.boots += 1;
                    told.release = rest.split(' ').next().unwrap_or_default().to_owned();
                    told.up_after = value("uptime").parse().unwrap_or_default();
                    told.clocksource[0] = value("clock").to_owned();
                }
                "pass" => drop(passes.insert(rest.to_owned())),
                "right" => {
                    told.right = rest.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default()
                }
                "boot:" => told.at_boot.push(rest.to_owned()),
                // The kernel skips the comparison then (kernel/time/clocksource.c, cs_watchdog_read).
                "complaint:" if rest.contains("read-back delay of") => {
                    told.kept_waiting.push(rest.to_owned())
                }
                "complaint:" => told.complaints.push(rest.to_owned()),
                "wrong:" => told.found.push(rest.to_owned()),
                "end" => {
                    told.ended = true;
                    told.ended_after = value("uptime").parse().unwrap_or_default();
                    told.clocksource[1] = value("clock").to_owned();
                }
                _ => {}
            }
        }
        told.passes = passes.len();
        told
    }

    /// What is wrong, for a guest with so many vCPUs and passes of each worker.
    pub fn wrong(&self, vcpus: u32, passes: u32) -> Vec<String> {
        let mut wrong = self.found.clone();
        let all = vcpus * passes;
        wrong.extend(self.complaints.iter().map(|line| format!("its kernel's log: {line}")));
        let mut unless = |right: bool, what: String| wrong.extend((!right).then_some(what));
        unless(self.boots == 1, format!("it began {} times", self.boots));
        unless(self.ended, "it did not come to its end".to_owned());
        unless(self.passes == all as usize, format!("{} of {all} passes", self.passes));
        unless(self.right == all, format!("{} of {all} blocks are right", self.right));
        let [first, last] = &self.clocksource;
        unless(!first.is_empty() && first == last, format!("its clocksource was {first:?} and is {last:?}"));
        wrong
    }
}

impl Journeys {
    /// For people.
    pub fn text(&self) -> String {
        let mut w = String::new();
        let short = |name: &str| name.trim_start_matches("debian-").to_owned();
        let _ = writeln!(
            w,
            "{:<8} {:>5}  {:<22} {:>7} {:>20}  {:<10} result",
            "guest", "vCPUs", "route", "up s", "legs s", "clock"
        );
        for one in &self.journeys {
            let route: Vec<String> = one.route.iter().map(|name| short(name)).collect();
            let legs: Vec<String> = one.legs.iter().map(|leg| format!("{:.1}", leg.seconds)).collect();
            let result = match one.wrong.as_slice() {
                [] => format!("{} blocks right, no complaint", one.told.right),
                [first, ..] => format!("WRONG: {}", first.lines().next().unwrap_or_default()),
            };
            let _ = writeln!(
                w,
                "{:<8} {:>5}  {:<22} {:>7.1} {:>20}  {:<10} {result}",
                short(&one.guest),
                one.vcpus,
                route.join(" → "),
                one.told.up_after,
                legs.join(" + "),
                one.told.clocksource[1]
            );
            for line in one.wrong.iter().skip(1) {
                let _ = writeln!(w, "    {}", line.lines().next().unwrap_or_default());
            }
        }
        let good = self.journeys.iter().filter(|one| one.wrong.is_empty()).count();
        let _ = writeln!(w, "{good} of {} guests came back with everything right", self.journeys.len());
        w
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "JOURNEY up 6.1.0 cpus=1 clock=kvm-clock uptime=3.50\r\nJOURNEY pass 0.1\r\n[    5.0] x JOURNEY pass 0.2\n\
        JOURNEY right 2 of 2\nJOURNEY end cpus=1 clock=kvm-clock was=kvm-clock uptime=60.00\n";

    #[test]
    fn a_good_console_has_nothing_wrong() {
        let told = Told::of(GOOD);
        assert_eq!((told.up_after, told.ended_after, told.passes, told.right), (3.5, 60.0, 2, 2));
        assert_eq!(told.wrong(1, 2), Vec::<String>::new());
    }

    #[test]
    fn a_guest_that_was_kept_waiting_has_nothing_wrong_and_one_that_gave_its_clock_up_has() {
        let with = |line: &str| {
            let told = Told::of(
                &GOOD.replace("JOURNEY right", &format!("JOURNEY complaint: {line}\nJOURNEY right")),
            );
            (told.kept_waiting.len(), told.wrong(1, 2).len())
        };
        let waited = "[ 34.1] clocksource: wd-tsc-wd read-back delay of 1102538ns, clock-skew test skipped!";
        assert_eq!(with(waited), (1, 0));
        assert_eq!(with("[ 34.1] clocksource: Marking clocksource 'tsc' as unstable"), (0, 1));
    }

    #[test]
    fn whatever_is_otherwise_is_wrong() {
        for (from, to) in [
            ("JOURNEY pass 0.2\n", "\n"),
            ("right 2", "right 1"),
            ("clock=kvm-clock was", "clock=tsc was"),
            ("JOURNEY end", "end"),
            ("JOURNEY pass 0.1", "JOURNEY up 6.1.0 cpus=1 clock=kvm-clock uptime=1\nJOURNEY pass 0.1"),
            ("JOURNEY right", "JOURNEY complaint: [ 9.0] watchdog: BUG: soft lockup\nJOURNEY right"),
            ("JOURNEY right", "JOURNEY wrong: write\nJOURNEY right"),
        ] {
            let spoilt = GOOD.replace(from, to);
            assert_ne!(spoilt, GOOD);
            assert_ne!(Told::of(&spoilt).wrong(1, 2), Vec::<String>::new(), "{spoilt}");
        }
    }
}
