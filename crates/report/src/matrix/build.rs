//! From what was computed to the document: lanes, short names, and one table of findings.

use std::collections::HashMap;

use evenkeel_contract::{Axis, Evidence, Finding, Pair, View};

use super::{
    CauseInfo, CodeInfo, MatrixGuest, MatrixHost, MatrixLane, MatrixPair, MatrixReport, MatrixVerdict,
    NotAsked, Origin,
};
use crate::model::HostInfo;

/// A host, as it is given.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What it is called in the matrix.
    pub name: &'a str,
    /// What that stands for, in words.
    pub stands_for: &'a str,
    /// The kernel's point release, to read.
    pub point_release: &'a str,
    /// The CPU or emulator that it was captured on.
    pub lane: &'a str,
    /// Where the capture comes from.
    pub origin: Origin,
    /// One a shape; at least one.
    pub views: &'a [View],
}

/// What came of one ordered pair: none when the hosts have no shape in common.
pub type Pairing = (usize, usize, Option<Pair>);

/// Lanes: hosts of one architecture and one lane's name, in the order in which they were given.
fn lanes(hosts: &[Input<'_>]) -> Vec<MatrixLane> {
    let mut lanes: Vec<MatrixLane> = Vec::new();
    for (i, h) in hosts.iter().enumerate() {
        let Some(arch) = h.views.first().map(|v| v.arch) else { continue };
        match lanes.iter_mut().find(|l| l.name == h.lane && l.arch == arch) {
            Some(lane) => lane.hosts.push(i),
            None => lanes.push(MatrixLane { name: h.lane.to_owned(), arch, hosts: vec![i] }),
        }
    }
    lanes
}

/// The ordered pairs to ask for, a lane after the other, row by row. A host is not compared with itself.
pub fn orders(hosts: &[Input<'_>]) -> Vec<(usize, usize)> {
    let of_lane = |lane: &MatrixLane| -> Vec<(usize, usize)> {
        let row = |from: &usize| lane.hosts.iter().map(|to| (*from, *to)).collect::<Vec<_>>();
        lane.hosts.iter().flat_map(row).filter(|(from, to)| from != to).collect()
    };
    lanes(hosts).iter().flat_map(of_lane).collect()
}

/// The document. `pairings` in the order of [`orders`].
pub fn build(hosts: &[Input<'_>], pairings: Vec<Pairing>) -> MatrixReport {
    let lanes = lanes(hosts);
    let mut short = vec![String::new(); hosts.len()];
    for lane in &lanes {
        let names: Vec<&str> = lane.hosts.iter().map(|h| hosts[*h].name).collect();
        for (h, s) in lane.hosts.iter().zip(shorten(&names)) {
            short[*h] = s;
        }
    }
    let mut table = Table::default();
    let mut pairs = Vec::with_capacity(pairings.len());
    let mut not_asked = Vec::new();
    for (from, to, found) in pairings {
        match found {
            Some(pair) => pairs.push(table.pair(from, to, pair)),
            None => {
                let why = "the two were captured in no common shape".to_owned();
                not_asked.push(NotAsked { from, to, why });
            }
        }
    }
    let hosts = hosts.iter().zip(short).map(|(h, short)| host(h, short)).collect();
    let (causes, codes) = (causes(&table.findings), codes(&table.findings));
    MatrixReport {
        schema: "evenkeel.matrix/1",
        hosts,
        lanes,
        causes,
        codes,
        findings: table.findings,
        pairs,
        not_asked,
    }
}

fn host(h: &Input<'_>, short: String) -> MatrixHost {
    let info = match h.views.first() {
        Some(view) => HostInfo { name: h.name.to_owned(), ..HostInfo::of(view, h.stands_for) },
        None => HostInfo {
            name: h.name.to_owned(),
            stands_for: h.stands_for.to_owned(),
            kernel: String::new(),
            cpu: String::new(),
            offer_digest: String::new(),
            evidence: Evidence::Predicted,
        },
    };
    MatrixHost { info, short, point_release: h.point_release.to_owned(), origin: h.origin }
}

/// Names without the parts at both ends that all of them share: `6.12.43` of `debian-6.12.43-arm64`.
fn shorten(names: &[&str]) -> Vec<String> {
    let whole = || names.iter().map(|n| (*n).to_owned()).collect();
    let [first, rest @ ..] = names else { return Vec::new() };
    if rest.is_empty() {
        return whole();
    }
    let is_seam = |c: char| c == '-' || c == '/' || c == '@';
    let head = first
        .char_indices()
        .filter(|(_, c)| is_seam(*c))
        .map(|(i, _)| &first[..=i])
        .rfind(|head| rest.iter().all(|n| n.starts_with(head)))
        .unwrap_or("");
    let tail = first
        .char_indices()
        .filter(|(_, c)| is_seam(*c))
        .map(|(i, _)| &first[i..])
        .find(|tail| rest.iter().all(|n| n.ends_with(tail)))
        .unwrap_or("");
    let short: Option<Vec<String>> = names
        .iter()
        .map(|n| n[head.len()..].strip_suffix(tail).filter(|s| !s.is_empty()).map(str::to_owned))
        .collect();
    short.unwrap_or_else(whole)
}

/// Findings, each once.
#[derive(Default)]
struct Table {
    findings: Vec<Finding>,
    index: HashMap<Finding, usize>,
}

impl Table {
    fn put(&mut self, finding: Finding) -> usize {
        let next = self.findings.len();
        let at = *self.index.entry(finding.clone()).or_insert(next);
        if at == next {
            self.findings.push(finding);
        }
        at
    }

    fn pair(&mut self, from: usize, to: usize, pair: Pair) -> MatrixPair {
        let mut axes: Vec<Axis> = Vec::new();
        let findings = pair.guests.iter().flat_map(|g| &g.verdicts).flat_map(|v| &v.findings);
        for axis in findings.map(|f| f.axis).filter(|a| *a != Axis::Kernel) {
            if !axes.contains(&axis) {
                axes.push(axis);
            }
        }
        axes.sort();
        let guests = pair.guests.into_iter().map(|g| MatrixGuest {
            guest: g.guest,
            verdicts: g
                .verdicts
                .into_iter()
                .map(|v| MatrixVerdict {
                    journey: v.journey,
                    outcome: v.outcome,
                    otherwise: v.otherwise,
                    evidence: v.evidence,
                    findings: v.findings.into_iter().map(|f| self.put(f)).collect(),
                })
                .collect(),
        });
        MatrixPair {
            from,
            to,
            shapes: pair.shapes,
            conflicts: pair.conflicts.iter().map(Into::into).collect(),
            axes,
            guests: guests.collect(),
        }
    }
}

fn causes(findings: &[Finding]) -> Vec<CauseInfo> {
    let mut ids: Vec<&str> = findings.iter().filter_map(|f| f.cause).collect();
    ids.sort_unstable();
    ids.dedup();
    let info = |id: &str| {
        let c = evenkeel_catalog::change(id)?;
        let k = &c.kernels;
        let kernels = [
            ("last known without", k.last_without),
            ("first known with", k.first_with),
            ("mainline", k.mainline),
            ("stable", k.stable),
        ];
        let kernels: Vec<String> =
            kernels.iter().filter(|(_, v)| !v.is_empty()).map(|(w, v)| format!("{w} {v}")).collect();
        Some(CauseInfo {
            id: c.id,
            title: c.title,
            summary: c.summary,
            guest_observes: c.guest_observes,
            who: c.blast_words,
            kernels: kernels.join("; "),
            rollback: c.rollback,
            sources: c.sources.to_vec(),
        })
    };
    ids.into_iter().filter_map(info).collect()
}

fn codes(findings: &[Finding]) -> Vec<CodeInfo> {
    let mut codes: Vec<&str> = findings.iter().map(|f| f.code).collect();
    codes.sort_unstable();
    codes.dedup();
    let info = |c: &&str| evenkeel_catalog::code(c);
    codes.iter().filter_map(info).map(|c| CodeInfo { code: c.code, title: c.title, text: c.text }).collect()
}

#[cfg(test)]
mod tests {
    use super::shorten;

    #[test]
    fn names_keep_what_tells_them_apart() {
        assert_eq!(shorten(&["debian-6.1-arm64", "debian-6.12.43-arm64"]), ["6.1", "6.12.43"]);
        assert_eq!(shorten(&["debian-6.1", "debian-6.1-patched"]), ["6.1", "6.1-patched"]);
        assert_eq!(shorten(&["here", "here@debian-7.3"]), ["here", "here@debian-7.3"]);
        assert_eq!(shorten(&["a-", "a-b"]), ["a-", "a-b"], "nothing is shortened to nothing");
        assert_eq!(shorten(&["x-1-x", "x-x"]), ["x-1-x", "x-x"], "the ends may not overlap");
        assert_eq!(shorten(&["ü-1", "ü-2"]), ["1", "2"]);
        assert_eq!(shorten(&["debian-6.1"]), ["debian-6.1"]);
    }
}
