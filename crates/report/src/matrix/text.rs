//! The matrix for a terminal: a grid a lane, readable without colour, in 80 columns for a dozen kernels.

use std::fmt::Write as _;

use evenkeel_contract::{Evidence, Outcome};

use super::{Answer, Guest, Look, MatrixLane, MatrixReport, Origin};
use crate::style::{DIM, HEAD, NAME, WIDTH, of, padded, paint, wrap};

/// A line of the grid is at most so wide.
const COLUMNS: usize = 80;
/// So many of the things that cells rest on are told.
const TOP: usize = 10;

/// The text of `evenkeel lab matrix`. `all`: everything that cells rest on, and what every host stands for.
pub fn text(r: &MatrixReport, look: Look, all: bool) -> String {
    let mut out = String::new();
    let w = &mut out;
    let head = format!("{} guest, {}:", capital(look.guest.name()), look.trip.title());
    let told = wrap(&format!("{head} {}", look.trip.means()), WIDTH, "    ");
    // Colours take no room: they are put in after the lines are broken.
    let _ = writeln!(w, "{}", told.replacen(&head, &paint(HEAD, &head), 1));
    let _ =
        writeln!(w, "{}", wrap(&format!("{}: {}.", look.guest.name(), look.guest.means()), WIDTH, "    "));
    let mut legend: Vec<String> =
        Answer::ALL[..3].iter().chain([&Answer::ALL[6]]).map(|a| entry(*a)).collect();
    legend.push(format!("{} unknown, else h, s or d", paint(of(Outcome::Unknown), "?")));
    let _ = writeln!(w, "{}", legend.join("   "));
    for lane in &r.lanes {
        grid(w, r, lane, look);
        counts(w, r, lane, look);
        rests_on(w, r, lane, look, all);
        hosts(w, r, lane, all);
    }
    for n in &r.not_asked {
        let (from, to) = (&r.hosts[n.from].info.name, &r.hosts[n.to].info.name);
        let _ = writeln!(w, "Not asked: {from} to {to}: {}.", n.why);
    }
    out
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |c| c.to_uppercase().collect::<String>() + letters.as_str())
}

fn entry(answer: Answer) -> String {
    format!("{} {}", paint(of(answer.outcome), answer.letters()), answer.words())
}

/// A name in pieces of at most `width`, broken at its seams: a column's heading, from top to bottom. None: it does
/// not fit.
pub(super) fn pieces(name: &str, width: usize) -> Option<Vec<String>> {
    let mut pieces = vec![String::new()];
    let mut rest = name;
    while !rest.is_empty() {
        let end =
            rest.char_indices().skip(1).find(|(_, c)| ".-/@+".contains(*c)).map_or(rest.len(), |(i, _)| i);
        let (part, after) = rest.split_at(end);
        rest = after;
        let last = pieces.last_mut()?;
        if last.chars().count() + part.chars().count() <= width {
            last.push_str(part);
        } else if part.chars().count() <= width {
            pieces.push(part.to_owned());
        } else {
            return None;
        }
    }
    (pieces.len() <= 3).then_some(pieces)
}

fn grid(w: &mut String, r: &MatrixReport, lane: &MatrixLane, look: Look) {
    let names: Vec<&str> = lane.hosts.iter().map(|h| r.hosts[*h].short.as_str()).collect();
    // Columns are headed by names where these fit, and by the rows' numbers where not.
    let longest = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
    let headings: Option<Vec<Vec<String>>> = names.iter().map(|n| pieces(n, 4)).collect();
    let named = headings.filter(|_| 2 + longest + 1 + 5 * names.len() <= COLUMNS);
    let number = |i: usize| (i + 1).to_string();
    let (width, labels, headings) = match named {
        Some(headings) => (5, names.iter().map(|n| (*n).to_owned()).collect(), headings),
        None => {
            let labels = names.iter().enumerate().map(|(i, n)| format!("{:>2} {n}", number(i)));
            (3, labels.collect::<Vec<_>>(), (0..names.len()).map(|i| vec![number(i)]).collect())
        }
    };
    let cpus: Vec<&str> = lane.hosts.iter().map(|h| r.hosts[*h].info.cpu.as_str()).collect();
    let cpu = match cpus.first() {
        Some(first) if !first.is_empty() && cpus.iter().all(|c| c == first) => format!(" on {first}"),
        _ => String::new(),
    };
    let pairs = r.pairs_of(lane).count();
    let head = format!("{}  {}{cpu}, {} kernels, {pairs} pairs;", lane.name, lane.arch.name(), names.len());
    // Some CPUs have long names, and a terminal may have 80 columns.
    let gap = if head.chars().count() + " rows from, columns to".len() > 80 { "\n  " } else { " " };
    let _ =
        writeln!(w, "\n{}{gap}rows from, columns to", head.replacen(&lane.name, &paint(HEAD, &lane.name), 1));
    let label = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let lines = headings.iter().map(Vec::len).max().unwrap_or(0);
    for line in 0..lines {
        let cells: String = headings
            .iter()
            .map(|h| format!(" {:^1$}", h.get(line).map_or("", String::as_str), width - 1))
            .collect();
        let _ = writeln!(w, "  {:label$}{}", "", paint(HEAD, cells.trim_end()));
    }
    for (row, from) in lane.hosts.iter().enumerate() {
        let cells: String = lane
            .hosts
            .iter()
            .map(|to| {
                if from == to {
                    return format!(" {}", padded(DIM, &format!("{:^1$}", "·", width - 1), 0));
                }
                match r.pair(*from, *to).map(|p| look.answer(p)) {
                    Some(a) => {
                        format!(" {}", paint(of(a.outcome), &format!("{:^1$}", a.letters(), width - 1)))
                    }
                    None => format!(" {:^1$}", "-", width - 1),
                }
            })
            .collect();
        let _ = writeln!(w, "  {}{}", paint(HEAD, &format!("{:<label$}", labels[row])), cells.trim_end());
    }
}

fn counts(w: &mut String, r: &MatrixReport, lane: &MatrixLane, look: Look) {
    let heads: String = Answer::ALL.iter().map(|a| format!("{:>6}", a.letters())).collect();
    let _ = writeln!(
        w,
        "  {}",
        paint(HEAD, &format!("{:<28}{heads}", format!("of the pairs, {}", look.trip.title())))
    );
    for guest in Guest::ALL {
        let counts = Look { guest, ..look }.counts(r, lane);
        let cells: String = counts
            .iter()
            .zip(Answer::ALL)
            .map(|(n, a)| paint(if *n == 0 { DIM } else { of(a.outcome) }, &format!("{n:>6}")))
            .collect();
        let _ = writeln!(w, "  {:<28}{cells}", guest.name());
    }
}

fn rests_on(w: &mut String, r: &MatrixReport, lane: &MatrixLane, look: Look, all: bool) {
    let tallies = look.tallies(r, lane);
    // What nobody has observed is the same in nearly all cells: told in one line.
    let (known, unknown): (Vec<_>, Vec<_>) = tallies.into_iter().partition(|t| t.outcome != Outcome::Unknown);
    if known.is_empty() && unknown.is_empty() {
        return;
    }
    let _ = writeln!(w, "  {}", paint(HEAD, "what cells rest on, most severe first, and in how many cells"));
    let shown = if all { known.len() } else { TOP };
    for t in known.iter().take(shown) {
        let answer = Answer { outcome: t.outcome, otherwise: t.outcome };
        let name = t.cause.map_or(String::new(), |id| format!("{id} "));
        let about = match t.subjects.len() {
            1 => t.subjects.iter().next().cloned().unwrap_or_default(),
            n => format!("{n} facets and items"),
        };
        let text = format!("{name}{} [{}; {about}]", t.title, t.code);
        let _ = writeln!(
            w,
            "  {} {:>4}  {}",
            paint(of(t.outcome), answer.letters()),
            t.cells,
            wrap(&text, WIDTH, "          ").replacen(&name, &paint(NAME, &name), 1)
        );
    }
    if known.len() > shown {
        let _ = writeln!(w, "          and {} more: --all", known.len() - shown);
    }
    if !unknown.is_empty() {
        let cells = unknown.iter().map(|t| t.cells).max().unwrap_or(0);
        let subjects: std::collections::BTreeSet<&String> =
            unknown.iter().flat_map(|t| &t.subjects).collect();
        let text = format!(
            "{} behaviours and values that nobody has observed yet{}",
            subjects.len(),
            if all {
                format!(": {}", subjects.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", "))
            } else {
                String::new()
            }
        );
        let _ = writeln!(
            w,
            "  {} {cells:>4}  {}",
            paint(of(Outcome::Unknown), "?"),
            wrap(&text, WIDTH, "          ")
        );
    }
}

fn hosts(w: &mut String, r: &MatrixReport, lane: &MatrixLane, all: bool) {
    if all {
        for h in lane.hosts.iter().map(|h| &r.hosts[*h]) {
            let badge = match h.origin.words() {
                "" => String::new(),
                words => format!(" ({words})"),
            };
            let text = wrap(&format!("{} = {}{badge}", h.info.name, h.info.stands_for), WIDTH, "      ");
            let _ = writeln!(w, "  {}", text.replacen(&h.info.name, &paint(NAME, &h.info.name), 1));
        }
        return;
    }
    for origin in [Origin::Bundled, Origin::Given] {
        let names: Vec<&str> = lane
            .hosts
            .iter()
            .map(|h| &r.hosts[*h])
            .filter(|h| h.origin == origin)
            .map(|h| h.short.as_str())
            .collect();
        if !names.is_empty() {
            let whom = if names.len() == lane.hosts.len() { "all".to_owned() } else { names.join(", ") };
            let _ = writeln!(
                w,
                "  {}",
                paint(DIM, &wrap(&format!("{}: {whom}", origin.words()), WIDTH, "      "))
            );
        }
    }
    let predicted: Vec<&str> = lane
        .hosts
        .iter()
        .map(|h| &r.hosts[*h])
        .filter(|h| h.info.evidence == Evidence::Predicted)
        .map(|h| h.short.as_str())
        .collect();
    if !predicted.is_empty() {
        let _ = writeln!(
            w,
            "  {}",
            paint(DIM, &wrap(&format!("predicted: {}", predicted.join(", ")), WIDTH, "      "))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn headings_break_at_seams() {
        assert_eq!(pieces("6.12.43", 4).unwrap(), ["6.12", ".43"]);
        assert_eq!(pieces("7.3", 4).unwrap(), ["7.3"]);
        assert_eq!(pieces("5.10.223", 4).unwrap(), ["5.10", ".223"]);
        assert!(pieces("patched-kernel", 4).is_none());
        assert_eq!(pieces("", 4).unwrap(), [""]);
    }
}
