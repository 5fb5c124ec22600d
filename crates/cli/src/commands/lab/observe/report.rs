//! What guests saw on many kernels under one contract, beside what one saw on the kernel that the contract is of.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use evenkeel_surface::Arch;
use evenkeel_witness::compare::{Comparison, Difference, compare};
use evenkeel_witness::observation::{Observation, Saw, unfold};
use schemars::JsonSchema;
use serde::Serialize;

/// `evenkeel lab observe --format json`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LabObserved {
    /// `evenkeel.lab-observe/1`.
    pub schema: &'static str,
    /// One for each kernel whose contract was put on all.
    pub rounds: Vec<Round>,
}

/// One contract on all kernels.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Round {
    /// The kernel that the others are compared with, and whose contract it is unless a file was named.
    pub of: String,
    /// The contract's name; none when the guests were under no contract.
    pub contract: Option<String>,
    /// The guests' shape.
    pub shape: String,
    /// What each kernel showed, in the order in which they were named.
    pub hosts: Vec<HostSaw>,
}

/// What a guest saw on one kernel.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct HostSaw {
    /// The host.
    pub host: String,
    /// `uname -r`; empty when nothing was observed.
    pub release: String,
    /// What came of applying the contract, read back: `kept`, `refused`, `incomplete`; none without a contract.
    pub applied: Option<String>,
    /// What the guest saw otherwise than the contract promises, by facet.
    pub leaks: Vec<String>,
    /// The observation's digest; empty when there is none.
    pub observation: String,
    /// How many things were seen as on the kernel that it is compared with.
    pub alike: usize,
    /// What was seen otherwise, with the ledger's entry.
    pub explained: Vec<Difference>,
    /// What was seen otherwise, and no entry is about it.
    pub unexplained: Vec<Difference>,
    /// What only one of the two guests could be asked; with the entry about the reason, where there is one.
    pub undetermined: Vec<Difference>,
    /// What becomes of an EOI under each choice (x86, shape split).
    pub eoi: Option<EoiBroadcast>,
    /// Why nothing was observed.
    pub error: Option<String>,
}

/// Suppression of EOI broadcasts, as three guests saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EoiBroadcast {
    /// With neither flag of KVM_CAP_X2APIC_API, and under the contract.
    pub legacy: Option<Eoi>,
    /// With KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST; none where the kernel does not take it.
    pub enabled: Option<Eoi>,
    /// With KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST; none where the kernel does not take it.
    pub disabled: Option<Eoi>,
}

/// What a guest saw that set SPIV bit 12 and ended a level-triggered interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Eoi {
    /// Bit 24 of the APIC's version register.
    pub claimed: bool,
    /// The EOI was handed on to the IOAPIC.
    pub broadcast: bool,
}

impl EoiBroadcast {
    fn of(seen: &BTreeMap<String, Saw>) -> Option<EoiBroadcast> {
        let number =
            |name: &str, suffix: &str| match seen.get(&format!("apic.suppress-eoi.{name}{suffix}"))? {
                Saw::Value(value) => Some(value.0 != 0),
                _ => None,
            };
        let eoi = |suffix: &str| {
            Some(Eoi { claimed: number("claimed", suffix)?, broadcast: number("broadcast", suffix)? })
        };
        let all = EoiBroadcast {
            legacy: eoi(""),
            enabled: eoi("@suppress-eoi-enabled"),
            disabled: eoi("@suppress-eoi-disabled"),
        };
        (all != EoiBroadcast::default()).then_some(all)
    }
}

impl HostSaw {
    /// What was seen here, beside the observation of the kernel that it is compared with.
    pub fn new(host: &str, seen: &Observation, reference: &Observation) -> HostSaw {
        let Comparison { alike, differences, undetermined, .. } = compare(reference, seen);
        let (explained, unexplained) = differences.into_iter().partition(|d| d.cause.is_some());
        let eoi = (seen.arch == Arch::X86_64).then(|| EoiBroadcast::of(&unfold(&seen.seen))).flatten();
        HostSaw {
            host: host.to_owned(),
            release: seen.volatile.kernel.clone(),
            observation: seen.digest.clone(),
            alike,
            explained,
            unexplained,
            undetermined,
            eoi,
            ..HostSaw::default()
        }
    }

    /// A host on which nothing was observed.
    pub fn failed(host: &str, why: String) -> HostSaw {
        HostSaw { host: host.to_owned(), error: Some(why), ..HostSaw::default() }
    }

    /// What only one guest could be asked, and no entry tells why.
    fn open(&self) -> impl Iterator<Item = &Difference> {
        self.undetermined.iter().filter(|d| d.cause.is_none())
    }
}

impl LabObserved {
    /// The exit code: 3 where a host showed nothing, 1 where something is without an entry.
    pub fn code(&self) -> u8 {
        let mut hosts = self.rounds.iter().flat_map(|round| &round.hosts);
        if self.rounds.is_empty() || hosts.clone().any(|host| host.error.is_some()) {
            return 3;
        }
        u8::from(hosts.any(|host| !host.unexplained.is_empty() || host.open().next().is_some()))
    }

    /// For people; `all` names also what has an entry.
    pub fn text(&self, all: bool) -> String {
        self.rounds.iter().map(|round| round.text(all)).collect::<Vec<_>>().join("\n")
    }
}

impl Round {
    fn text(&self, all: bool) -> String {
        let mut w = String::new();
        let under = match &self.contract {
            Some(name) => format!("under contract {name}"),
            None => "without a contract".to_owned(),
        };
        let _ = writeln!(w, "guests {under}, shape {}, compared with {}", self.shape, self.of);
        let _ = writeln!(
            w,
            "  {:<24} {:<10} {:>6} {:>10} {:>8} {:>13} {:>8}",
            "host", "contract", "alike", "explained", "without", "undetermined", "without"
        );
        for h in &self.hosts {
            if let Some(why) = &h.error {
                let _ = writeln!(w, "  {:<24} nothing observed: {why}", h.host);
                continue;
            }
            let _ = writeln!(
                w,
                "  {:<24} {:<10} {:>6} {:>10} {:>8} {:>13} {:>8}",
                h.host,
                h.applied.as_deref().unwrap_or("-"),
                h.alike,
                h.explained.len(),
                h.unexplained.len(),
                h.undetermined.len(),
                h.open().count()
            );
        }
        self.causes(&mut w);
        let leaks = self.hosts.iter().filter(|h| !h.leaks.is_empty());
        section(&mut w, "Seen otherwise than promised", leaks.map(|h| (h, h.leaks.join(", "))));
        let every = |list: fn(&HostSaw) -> Vec<&Difference>| {
            self.hosts.iter().flat_map(move |h| list(h).into_iter().map(move |d| (h, d)))
        };
        let told = |(h, d): (&HostSaw, &Difference)| {
            let cause = d.cause.as_ref().map_or(String::new(), |id| format!("  [{id}]"));
            let title = if d.title.is_empty() { String::new() } else { format!("  ({})", d.title) };
            (h.host.clone(), format!("{}: {} → {}{cause}{title}", d.name, d.before, d.after))
        };
        let mut list = |head: &str, lines: Vec<(String, String)>| {
            if !lines.is_empty() {
                let _ = writeln!(w, "\n{head}");
            }
            for (host, line) in lines {
                let _ = writeln!(w, "  {host}: {line}");
            }
        };
        if all {
            list("With an entry in the ledger", every(|h| h.explained.iter().collect()).map(told).collect());
            list("Undetermined", every(|h| h.undetermined.iter().collect()).map(told).collect());
        }
        list("Without an entry in the ledger", every(|h| h.unexplained.iter().collect()).map(told).collect());
        list("Undetermined, without an entry", every(|h| h.open().collect()).map(told).collect());
        self.eoi(&mut w);
        w
    }

    /// The entries that explain, with the number of things and the hosts.
    fn causes(&self, w: &mut String) {
        let mut causes: BTreeMap<(&str, &str), BTreeMap<&str, usize>> = BTreeMap::new();
        for h in &self.hosts {
            for d in &h.explained {
                let Some(id) = &d.cause else { continue };
                *causes.entry((id, &d.cause_title)).or_default().entry(&h.host).or_default() += 1;
            }
        }
        for ((id, title), hosts) in causes {
            let most = hosts.values().max().unwrap_or(&0);
            let hosts: Vec<&str> = hosts.keys().copied().collect();
            let _ = writeln!(w, "  {id} {title}: {most} on {}", hosts.join(", "));
        }
    }

    fn eoi(&self, w: &mut String) {
        if self.hosts.iter().all(|h| h.eoi.is_none()) {
            return;
        }
        let show = |eoi: &Option<Eoi>| match eoi {
            None => "not taken".to_owned(),
            Some(Eoi { claimed, broadcast }) => format!(
                "{}, {}",
                if *claimed { "claimed" } else { "not claimed" },
                if *broadcast { "broadcast" } else { "suppressed" }
            ),
        };
        let _ =
            writeln!(w, "\nSuppression of EOI broadcasts: what the APIC claims, and what becomes of an EOI");
        let _ = writeln!(w, "  {:<24} {:<24} {:<24} {:<24}", "host", "legacy", "enabled", "disabled");
        for h in &self.hosts {
            let Some(e) = &h.eoi else { continue };
            let [x, y, z] = [&e.legacy, &e.enabled, &e.disabled].map(show);
            let _ = writeln!(w, "  {:<24} {x:<24} {y:<24} {z:<24}", h.host);
        }
        let all: Vec<&EoiBroadcast> = self.hosts.iter().filter_map(|h| h.eoi.as_ref()).collect();
        let with: Vec<_> = all.iter().filter(|e| e.enabled.is_some() && e.disabled.is_some()).collect();
        let three =
            |e: &EoiBroadcast| e.legacy != e.enabled && e.enabled != e.disabled && e.disabled != e.legacy;
        let _ = writeln!(
            w,
            "  {} of {} take the flags, {} of them with three behaviours; legacy is {}",
            with.len(),
            all.len(),
            with.iter().filter(|e| three(e)).count(),
            if all.windows(2).all(|pair| pair[0].legacy == pair[1].legacy) {
                "the same on all"
            } else {
                "not the same on all"
            }
        );
    }
}

fn section<'h>(w: &mut String, head: &str, lines: impl Iterator<Item = (&'h HostSaw, String)>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        let _ = writeln!(w, "\n{head}");
    }
    for (host, line) in lines {
        let _ = writeln!(w, "  {}: {line}", host.host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_witness::observation::{Record, Volatile};

    fn seen(fill: impl FnOnce(&mut Record)) -> Observation {
        let mut record = Record::default();
        fill(&mut record);
        record.finish(Arch::X86_64, "split", Volatile { kernel: "6.1".to_owned(), ..Volatile::default() })
    }

    fn round(other: &Observation, reference: &Observation) -> LabObserved {
        let hosts = vec![HostSaw::new("one", reference, reference), HostSaw::new("other", other, reference)];
        let (of, shape) = ("one".to_owned(), "split".to_owned());
        LabObserved {
            schema: "evenkeel.lab-observe/1",
            rounds: vec![Round { of, contract: None, shape, hosts }],
        }
    }

    #[test]
    fn what_has_no_entry_is_named_and_fails() {
        let one = seen(|r| r.value("insn.nobody-knows", 1));
        let other = seen(|r| r.value("insn.nobody-knows", 2));
        assert_eq!(round(&one, &one).code(), 0);
        let told = round(&other, &one);
        assert_eq!(told.code(), 1);
        assert!(told.text(false).contains("other: insn.nobody-knows: 0x1 → 0x2"), "{}", told.text(false));
        let mut failed = round(&one, &one);
        failed.rounds[0].hosts.push(HostSaw::failed("third", "it hangs".to_owned()));
        assert_eq!(failed.code(), 3);
        assert_eq!(LabObserved { rounds: Vec::new(), ..failed }.code(), 3, "nothing ran");
    }

    #[test]
    fn three_choices_are_three_behaviours() {
        let eoi = |r: &mut Record, suffix: &str, claimed: u64, broadcast: u64| {
            r.value(format!("apic.suppress-eoi.claimed{suffix}"), claimed);
            r.value(format!("apic.suppress-eoi.broadcast{suffix}"), broadcast);
        };
        let old = seen(|r| eoi(r, "", 1, 1));
        let new = seen(|r| {
            eoi(r, "", 1, 1);
            eoi(r, "@suppress-eoi-enabled", 1, 0);
            eoi(r, "@suppress-eoi-disabled", 0, 1);
        });
        let told = round(&new, &old);
        let text = told.text(false);
        assert!(
            text.contains(
                "1 of 2 take the flags, 1 of them with three behaviours; legacy is the same on all"
            ),
            "{text}"
        );
        let causes: Vec<_> =
            told.rounds[0].hosts[1].undetermined.iter().map(|d| d.cause.as_deref()).collect();
        assert_eq!(
            causes,
            [Some("X86-001"); 4],
            "what only a kernel with the flags can be asked has their entry"
        );
        assert_eq!(told.code(), 0);
    }
}
