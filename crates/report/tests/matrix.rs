//! The matrix says what the algebra found, all of it and nothing else, also where hosts have hostile names.

use std::collections::HashSet;

use evenkeel_contract::pair::pair;
use evenkeel_contract::{Journey, Outcome};
use evenkeel_hosts::{Host, load};
use evenkeel_report::matrix::{
    Answer, Guest, Input, Look, MatrixReport, Origin, Pairing, Trip, build, html, orders, text,
};

const HOSTS: [&str; 6] =
    ["debian-6.1", "debian-7.3-arm64", "debian-6.18", "debian-7.2-arm64", "debian-7.3", "debian-6.12-arm64"];
const LOOK: Look = Look { guest: Guest::Pinned, trip: Trip::ThereAndBack };

fn hosts() -> Vec<Host> {
    HOSTS.iter().map(|h| load(h).unwrap()).collect()
}

fn inputs<'a>(hosts: &'a [Host], names: &[&'a str]) -> Vec<Input<'a>> {
    let input = |(h, name): (&'a Host, &&'a str)| Input {
        name,
        stands_for: &h.stands_for,
        point_release: "6.1",
        lane: if h.name.contains("arm64") { "arm64" } else { "svm" },
        origin: Origin::Bundled,
        views: &h.views,
    };
    hosts.iter().zip(names).map(input).collect()
}

fn computed(hosts: &[Host], names: &[&str]) -> MatrixReport {
    let inputs = inputs(hosts, names);
    let ask =
        |(from, to): (usize, usize)| -> Pairing { (from, to, pair(&hosts[from].views, &hosts[to].views)) };
    build(&inputs, orders(&inputs).into_iter().map(ask).collect())
}

#[test]
fn the_table_of_findings_loses_nothing() {
    let hosts = hosts();
    let r = computed(&hosts, &HOSTS);
    assert_eq!(r.pairs.len(), 12, "two lanes of three");
    let mut used = HashSet::new();
    let mut told = 0;
    for p in &r.pairs {
        assert_eq!(hosts[p.from].surface.arch, hosts[p.to].surface.arch);
        assert_ne!(p.from, p.to);
        let truth = pair(&hosts[p.from].views, &hosts[p.to].views).unwrap();
        assert_eq!((&p.shapes, p.guests.len()), (&truth.shapes, 2));
        for (mine, theirs) in p.guests.iter().zip(&truth.guests) {
            assert_eq!(mine.guest, theirs.guest);
            assert_eq!(mine.verdicts.len(), 4);
            for (v, truth) in mine.verdicts.iter().zip(&theirs.verdicts) {
                assert_eq!(
                    (v.journey, v.outcome, v.otherwise, v.evidence),
                    (truth.journey, truth.outcome, truth.otherwise, truth.evidence)
                );
                assert!(r.expand(v).eq(&truth.findings), "{} to {}", HOSTS[p.from], HOSTS[p.to]);
                used.extend(v.findings.iter().copied());
                told += v.findings.len();
            }
        }
    }
    assert_eq!(used.len(), r.findings.len(), "every finding of the table is somebody's");
    assert_eq!(r.findings.iter().collect::<HashSet<_>>().len(), r.findings.len(), "each is there once");
    assert!(told > 2 * r.findings.len(), "{told} in {}", r.findings.len());
    for f in &r.findings {
        assert!(r.codes.iter().any(|c| c.code == f.code), "{}", f.code);
        assert!(f.cause.is_none_or(|id| r.causes.iter().any(|c| c.id == id)), "{:?}", f.cause);
    }
}

#[test]
fn counts_and_tallies_are_those_of_the_cells() {
    let r = computed(&hosts(), &HOSTS);
    for guest in Guest::ALL {
        for trip in Trip::ALL {
            let look = Look { guest, trip };
            for lane in &r.lanes {
                let answers: Vec<Answer> = r.pairs_of(lane).map(|p| look.answer(p)).collect();
                assert_eq!(answers.len(), 6);
                let counts = look.counts(&r, lane);
                assert_eq!(counts.iter().sum::<usize>(), answers.len(), "{look:?}: {answers:?}");
                for (n, a) in counts.iter().zip(Answer::ALL) {
                    assert_eq!(*n, answers.iter().filter(|b| **b == a).count());
                }
                for t in look.tallies(&r, lane) {
                    let has = |p: &&evenkeel_report::matrix::MatrixPair| {
                        let asked = p.guests.iter().filter(|g| g.guest == guest.name());
                        let verdicts = asked.flat_map(|g| &g.verdicts).filter(|v| trip.asks(v.journey));
                        verdicts.flat_map(|v| r.expand(v)).any(|f| {
                            (f.outcome, f.cause) == (t.outcome, t.cause)
                                && (f.cause.is_some() || f.code == t.code)
                        })
                    };
                    assert_eq!(t.cells, r.pairs_of(lane).filter(has).count(), "{t:?}");
                }
            }
        }
    }
    // A cell of several questions says the worst of them.
    let up = Look { guest: Guest::Unpinned, trip: Trip::One(Journey::RunningUp) };
    let worst = Look { trip: Trip::Worst, ..up };
    assert!(r.pairs.iter().all(|p| worst.answer(p).outcome >= up.answer(p).outcome));
    assert!(r.pairs.iter().any(|p| worst.answer(p).outcome > up.answer(p).outcome));
    assert!(r.pairs.iter().any(|p| up.answer(p).outcome == Outcome::No));
}

#[test]
fn a_pair_that_was_not_asked_is_said_to_be() {
    let hosts = hosts();
    let inputs = inputs(&hosts, &HOSTS);
    let ask = |(from, to): (usize, usize)| -> Pairing {
        let found = (from != 0).then(|| pair(&hosts[from].views, &hosts[to].views).unwrap());
        (from, to, found)
    };
    let r = build(&inputs, orders(&inputs).into_iter().map(ask).collect());
    assert_eq!((r.pairs.len(), r.not_asked.len()), (10, 2));
    let said = text(&r, LOOK, false);
    assert!(said.contains("Not asked: debian-6.1 to debian-7.3: the two were captured in no common shape."));
    let row = said.lines().find(|l| l.contains("6.1 ") && l.contains('·')).unwrap();
    assert!(row.contains(" -   "), "no answer is shown: {row:?}");
    assert!(html(&r, LOOK).contains("debian-6.1 to debian-7.3: the two were captured"));
}

/// Elements that have no end.
const VOID: [&str; 3] = ["meta", "input", "wbr"];

/// Tags nest, attributes are quoted; the content of scripts and styles is returned.
fn well_formed(page: &str) -> Vec<(String, String)> {
    let mut raw = Vec::new();
    let mut open: Vec<String> = Vec::new();
    let mut rest = page.strip_prefix("<!doctype html>").expect("a doctype");
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("a tag ends");
        let (tag, after) = (&rest[..end], &rest[end + 1..]);
        assert!(!tag.contains('<'), "a stray <: {tag}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let attributes: String = tag.split('"').step_by(2).collect();
        assert!(!attributes.contains("src") && !attributes.contains("href"), "nothing is fetched: {tag}");
        assert!(!attributes.contains('\'') && !attributes.contains(" on"), "{tag}");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "before: {}", &after[..after.len().min(200)]);
            continue;
        }
        let name = tag.split_whitespace().next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{tag}");
        if name == "script" || name == "style" {
            let end = rest.find(&format!("</{name}>")).expect("it ends");
            raw.push((tag.to_owned(), rest[..end].to_owned()));
            rest = &rest[end + name.len() + 3..];
        } else if !VOID.contains(&name) {
            open.push(name.to_owned());
        }
    }
    assert_eq!(open, Vec::<String>::new());
    raw
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    let hosts = hosts();
    let hostile = [
        "<script>alert(1)</script>",
        "</script><img src=x onerror=alert(1)>",
        "<!-- <script>",
        "\"><b onmouseover='x'>&lt;&amp;",
        "debian-7.3",
        "]]>\u{2028}\u{202e}name",
    ];
    for names in [HOSTS, hostile] {
        let r = computed(&hosts, &names);
        let page = html(&r, LOOK);
        let raw = well_formed(&page);
        let tags: Vec<&str> = raw.iter().map(|(tag, _)| tag.as_str()).collect();
        let json = "script type=\"application/json\" id=";
        assert_eq!(tags, ["style", &format!("{json}\"data\""), &format!("{json}\"words\""), "script"]);
        for needs in ["http:", "https:", "@import", "url(", "<link", "fetch(", "innerHTML"] {
            assert!(!page.contains(needs), "{needs}");
        }
        assert!(page.contains("default-src 'none'"));
        // The document inside is the document.
        let inside: serde_json::Value = serde_json::from_str(&raw[1].1).unwrap();
        assert_eq!(inside, serde_json::to_value(&r).unwrap());
        for (i, name) in names.iter().enumerate() {
            assert_eq!(inside["hosts"][i]["name"], *name);
        }
        assert_eq!(page.matches("data-pair=").count(), r.pairs.len());
        assert!(page.contains("captured earlier"));
    }
}

#[test]
fn the_page_shows_the_look_that_it_was_made_for() {
    let r = computed(&hosts(), &HOSTS);
    for look in [LOOK, Look { guest: Guest::Unpinned, trip: Trip::One(Journey::RunningBack) }] {
        let page = html(&r, look);
        for (i, p) in r.pairs.iter().enumerate() {
            let at = page.find(&format!("data-pair=\"{i}\"")).unwrap();
            let cell = &page[at..at + page[at..].find("</button>").unwrap()];
            assert!(cell.ends_with(&format!(">{}", look.answer(p).letters())), "{cell}");
        }
        for name in [look.guest.name(), look.trip.name()] {
            assert!(page.contains(&format!("value=\"{name}\" checked")), "{name}");
        }
    }
}
