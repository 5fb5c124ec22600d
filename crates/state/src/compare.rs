//! Two images of one guest at two times: what differs beyond what the catalog lets differ.
//!
//! What runs may be later by the time that went by and never earlier, a timer may have come nearer to its end, and what KVM
//! works out anew is not looked at. Everything else is the same or is a [`Difference`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use evenkeel_catalog::Compare;

use crate::clocks::{Clocks, Limit};
use crate::view::{Named, Rule, Value, view};
use crate::{Image, Item, Owner};

/// The time between two savings.
#[derive(Clone, Copy, Debug)]
pub struct Elapsed {
    /// The most that can have gone by for the guest, pauses that are made up for included.
    pub most: Duration,
    /// What setting and reading take on top, and how exactly a timer is armed again: ε.
    pub slack: Duration,
    /// Ticks in a second of arm64's counter (CNTFRQ_EL0), which no state tells. 1 GHz is the most that the architecture has.
    pub counter_hz: u64,
}

impl Elapsed {
    /// With a slack of one millisecond, and the fastest counter.
    pub fn of(most: Duration) -> Elapsed {
        Elapsed { most, slack: Duration::from_millis(1), counter_hz: 1_000_000_000 }
    }

    /// No time at all: what was set and is read back at once, with the guest standing still. Clocks of the host go on.
    pub fn none() -> Elapsed {
        Elapsed::of(Duration::ZERO)
    }
}

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whose it is.
    pub owner: Owner,
    /// The item: `lapic`; `manifest` for what was selected.
    pub section: String,
    /// The field: `TMCCT`; empty when the item as a whole is there on one side only.
    pub field: String,
    /// What it was; `None`: it was not there.
    pub before: Option<String>,
    /// What it is; `None`: it is not there.
    pub after: Option<String>,
    /// The rule by which it was compared.
    pub rule: Compare,
    /// What is wrong with it, where the values alone do not say.
    pub why: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { String::new() } else { format!("/{}", self.field) };
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(
            f,
            "{}/{}{field}: {} -> {}",
            self.owner,
            self.section,
            shown(&self.before),
            shown(&self.after)
        )?;
        if self.why.is_empty() { Ok(()) } else { write!(f, " ({})", self.why) }
    }
}

/// Everything in which `after` is not `before`, beyond what `elapsed` and the catalog's rules allow. Empty: they agree.
pub fn compare(before: &Image, after: &Image, elapsed: Elapsed) -> Vec<Difference> {
    let mut found = Vec::new();
    if before.arch != after.arch {
        let shown = |image: &Image| Some(format!("{:?}", image.arch));
        found.push(Difference {
            owner: Owner::Vm,
            section: "arch".to_owned(),
            field: String::new(),
            before: shown(before),
            after: shown(after),
            rule: Compare::Identical,
            why: "another architecture".to_owned(),
        });
    }
    manifests(before, after, &mut found);
    let (left, right) = (keyed(before), keyed(after));
    for (key, item) in &left {
        match right.get(key) {
            Some(other) => items(item, other, &Clocks::of(before, elapsed), &mut found),
            None => found.push(whole(item, true)),
        }
    }
    found
        .extend(right.iter().filter(|(key, _)| !left.contains_key(*key)).map(|(_, item)| whole(item, false)));
    found
}

/// Compares one item with itself at another time. `before` is the image that the first is from, which tells the rates.
pub fn compare_items(before: &Image, first: &Item, second: &Item, elapsed: Elapsed) -> Vec<Difference> {
    let mut found = Vec::new();
    items(first, second, &Clocks::of(before, elapsed), &mut found);
    found
}

/// Items by owner, name, and which one of those of the same name: no image that is well made has two.
fn keyed(image: &Image) -> BTreeMap<(Owner, &str, usize), &Item> {
    let mut map: BTreeMap<(Owner, &str, usize), &Item> = BTreeMap::new();
    for item in &image.items {
        let name = item.name.as_str();
        let nth = map.range((item.owner, name, 0)..=(item.owner, name, usize::MAX)).count();
        map.insert((item.owner, name, nth), item);
    }
    map
}

/// An item that is on one side only.
fn whole(item: &Item, was: bool) -> Difference {
    let shown = Some(format!("{} bytes", item.bytes.len()));
    Difference {
        owner: item.owner,
        section: item.name.clone(),
        field: String::new(),
        before: shown.clone().filter(|_| was),
        after: shown.filter(|_| !was),
        rule: Compare::Identical,
        why: if was { "it is gone" } else { "it was not there" }.to_owned(),
    }
}

fn manifests(before: &Image, after: &Image, found: &mut Vec<Difference>) {
    let (left, right) = (&before.manifest.calls, &after.manifest.calls);
    for index in 0..left.len().max(right.len()) {
        let (was, is) = (left.get(index), right.get(index));
        if was != is {
            let shown = |call: Option<&crate::Noted>| {
                call.map(|c| format!("{:?} {} {:02x?}", c.on, c.call, c.argument))
            };
            found.push(Difference {
                owner: Owner::Vm,
                section: "manifest".to_owned(),
                field: format!("call {index}"),
                before: shown(was),
                after: shown(is),
                rule: Compare::Identical,
                why: "something else was selected".to_owned(),
            });
        }
    }
}

fn items(before: &Item, after: &Item, clocks: &Clocks<'_>, found: &mut Vec<Difference>) {
    if before.bytes == after.bytes {
        return;
    }
    let difference =
        |field: &str, was: Option<&Value<'_>>, is: Option<&Value<'_>>, rule, why: String| Difference {
            owner: before.owner,
            section: before.name.clone(),
            field: field.to_owned(),
            before: was.map(ToString::to_string),
            after: is.map(ToString::to_string),
            rule,
            why,
        };
    let (left, right) = match (view(before), view(after)) {
        (Ok(left), Ok(right)) => (left, right),
        // What cannot be read can still be told apart.
        (Err(e), _) | (_, Err(e)) => {
            let (was, is) = (Value::Bytes(&before.bytes), Value::Bytes(&after.bytes));
            found.push(difference("", Some(&was), Some(&is), Compare::Identical, e.to_string()));
            return;
        }
    };
    let by_name: BTreeMap<&str, &Named<'_>> = right.iter().map(|n| (n.name.as_str(), n)).collect();
    for was in &left {
        match by_name.get(was.name.as_str()) {
            Some(is) => {
                if let Err(why) = fields(before, was, is, clocks) {
                    let (rule, was_value, is_value) = (was.rule.compare, Some(&was.value), Some(&is.value));
                    found.push(difference(&was.name, was_value, is_value, rule, why));
                }
            }
            None => found.push(difference(
                &was.name,
                Some(&was.value),
                None,
                was.rule.compare,
                "it is gone".to_owned(),
            )),
        }
    }
    let names: std::collections::BTreeSet<&str> = left.iter().map(|n| n.name.as_str()).collect();
    for is in right.iter().filter(|n| !names.contains(n.name.as_str())) {
        let why = "it was not there".to_owned();
        found.push(difference(&is.name, None, Some(&is.value), is.rule.compare, why));
    }
}

/// One field; the error says what is wrong with it.
fn fields(item: &Item, was: &Named<'_>, is: &Named<'_>, clocks: &Clocks<'_>) -> Result<(), String> {
    let rule = was.rule;
    if was.value == is.value || matches!(rule.compare, Compare::Computed | Compare::Lost) {
        return Ok(());
    }
    let (Value::Number(before), Value::Number(after)) = (was.value, is.value) else {
        return Err(String::new());
    };
    match rule.compare {
        Compare::Masked if (before ^ after) & !rule.ignore == 0 => Ok(()),
        // A timer that ended in between has left its interrupt.
        Compare::Identical if after == before | clocks.fired(item, &was.name) => Ok(()),
        Compare::Monotonic => ran(before, after, clocks.limit(item, rule.clock)),
        Compare::Rearmed if rule.deadline => deadline(before, after, item, rule, clocks),
        Compare::Rearmed => {
            let period = clocks.period(item);
            remaining(before, after, period, clocks.limit(item, rule.clock))
        }
        _ => Err(String::new()),
    }
}

/// A clock that may have gone on, and not further than time has.
fn ran(before: u64, after: u64, limit: Limit) -> Result<(), String> {
    let gone = after.wrapping_sub(before);
    if gone <= limit.ticks || gone.wrapping_neg() <= limit.back {
        Ok(())
    } else if gone > u64::MAX / 2 {
        Err(format!("it went back by {} ticks", gone.wrapping_neg()))
    } else {
        Err(format!("it went on by {gone} ticks, and time by {} at most", limit.ticks))
    }
}

/// What is left of a count: less by the time that went by, or begun anew where the timer is periodic.
fn remaining(before: u64, after: u64, period: Option<u64>, limit: Limit) -> Result<(), String> {
    let gone = match (before.checked_sub(after), period) {
        (Some(gone), _) => gone,
        (None, Some(period)) if after <= period => before + (period - after),
        (None, Some(_)) => return Err("more is left than a period".to_owned()),
        (None, None) => return Err("more is left than was".to_owned()),
    };
    if gone <= limit.ticks {
        Ok(())
    } else {
        Err(format!("{gone} ticks fewer are left, and time went by {} at most", limit.ticks))
    }
}

/// The moment of a timer's end: the same within ε, or 0 when it has been reached.
fn deadline(before: u64, after: u64, item: &Item, rule: Rule, clocks: &Clocks<'_>) -> Result<(), String> {
    let limit = clocks.limit(item, rule.clock);
    if after != 0 && before != 0 {
        return if before.abs_diff(after) <= limit.slack {
            Ok(())
        } else {
            Err("it ends at another moment".to_owned())
        };
    }
    if before == 0 {
        return Err("it was not armed".to_owned());
    }
    match clocks.now(item, rule.clock) {
        Some(now) if now.saturating_add(limit.ticks) >= before => Ok(()),
        Some(_) => Err("it is no longer armed, and cannot have fired".to_owned()),
        None => Err("it is no longer armed, and the state does not tell the time".to_owned()),
    }
}
