//! The matrix as one HTML page that needs nothing but itself: no network, no font, no file beside it.
//!
//! The grids are in the page as tables, so that it can be read and printed without scripts; the script redraws them
//! for another guest or journey and opens what a cell rests on. It gets the document of `--format json` and the
//! words of [`super::look`], and adds no judgement of its own.

use std::fmt::Write as _;

use evenkeel_contract::Journey;
use serde_json::{Value, json};

use super::text::pieces;
use super::{Answer, Guest, Look, MatrixHost, MatrixLane, MatrixReport, Trip};
use crate::reference::escape;

/// The page, showing `look` first.
pub fn html(r: &MatrixReport, look: Look) -> String {
    let mut out = String::with_capacity(1 << 20);
    let w = &mut out;
    w.push_str(HEAD);
    w.push_str("<style>\n");
    w.push_str(include_str!("page.css"));
    w.push_str("</style>\n</head>\n<body>\n");
    header(w, r, look);
    w.push_str("<div id=\"page\">\n<main>\n");
    for (i, lane) in r.lanes.iter().enumerate() {
        section(w, r, lane, i, look);
    }
    not_asked(w, r);
    w.push_str("</main>\n<aside id=\"panel\" tabindex=\"-1\" aria-live=\"polite\"></aside>\n</div>\n");
    let _ = writeln!(
        w,
        "<footer>Made by evenkeel {}: <code>evenkeel lab matrix -o FILE.html</code>. Kernels' names and releases are hints; \
         what is said here was computed from what each kernel answered.</footer>",
        env!("CARGO_PKG_VERSION")
    );
    embed(w, "data", &serde_json::to_value(r).unwrap_or(Value::Null));
    embed(w, "words", &words(look));
    w.push_str("<script>\n");
    w.push_str(include_str!("page.js"));
    w.push_str("</script>\n</body>\n</html>\n");
    out
}

/// The policy lets nothing in from outside, whatever a host calls itself.
const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">
<meta name=\"color-scheme\" content=\"light dark\">
<title>evenkeel: what each change of host kernel does to a guest</title>
";

/// A document inside the page. `<` is written so that no text can end the element that holds it.
fn embed(w: &mut String, id: &str, value: &Value) {
    let text = value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let _ = writeln!(w, "<script type=\"application/json\" id=\"{id}\">{text}</script>");
}

/// What the script says, in the words of the terminal.
fn words(look: Look) -> Value {
    let trip = |t: &Trip| {
        let asks: Vec<Journey> = Journey::ALL.into_iter().filter(|j| t.asks(*j)).collect();
        json!({"name": t.name(), "title": t.title(), "means": t.means(), "asks": asks})
    };
    let answer = |a: &Answer| json!({"letters": a.letters(), "words": a.words(), "outcome": a.outcome, "otherwise": a.otherwise, "class": class(*a)});
    json!({
        "guests": Guest::ALL.map(|g| json!({"name": g.name(), "means": g.means()})),
        "trips": Trip::ALL.iter().map(trip).collect::<Vec<_>>(),
        "answers": Answer::ALL.iter().map(answer).collect::<Vec<_>>(),
        "guest": look.guest.name(),
        "trip": look.trip.name(),
    })
}

/// The class of a cell: `h`, `s`, `d`, `n`; `u` before it where it is unknown.
fn class(a: Answer) -> String {
    a.letters().replace('?', "u").to_lowercase()
}

fn header(w: &mut String, r: &MatrixReport, look: Look) {
    let _ = writeln!(
        w,
        "<header>\n<h1>What does each change of host kernel do to a guest?</h1>\n\
         <p id=\"lead\"><b>{}, {}:</b> {} <span>{}: {}.</span></p>",
        escape(look.guest.name()),
        escape(look.trip.title()),
        escape(look.trip.means()),
        escape(look.guest.name()),
        escape(look.guest.means()),
    );
    w.push_str("<form id=\"controls\" class=\"screen\">\n");
    radios(w, "guest", "Guest", Guest::ALL.map(|g| (g.name(), g.name())).as_slice(), look.guest.name());
    let trips = Trip::ALL.map(|t| (t.name(), t.title()));
    radios(w, "trip", "Journey", trips.as_slice(), look.trip.name());
    w.push_str(
        "<label class=\"find\">Only what rests on <input type=\"search\" id=\"find\" list=\"causes\" \
         placeholder=\"a cause, a facet, an MSR …\" autocomplete=\"off\" spellcheck=\"false\"></label>\n<datalist id=\"causes\">",
    );
    for c in &r.causes {
        let _ = write!(w, "<option value=\"{}\">{}</option>", escape(c.id), escape(c.title));
    }
    w.push_str("</datalist>\n</form>\n<ul id=\"legend\" aria-label=\"Legend\">");
    for a in Answer::ALL {
        let _ = write!(w, "<li><i class=\"{}\">{}</i> {}</li>", class(a), a.letters(), escape(&a.words()));
    }
    w.push_str("</ul>\n</header>\n");
}

fn radios(w: &mut String, name: &str, title: &str, values: &[(&str, &str)], chosen: &str) {
    let _ = write!(w, "<fieldset><legend>{title}</legend>");
    for (value, words) in values {
        let checked = if *value == chosen { " checked" } else { "" };
        let _ = write!(
            w,
            "<label><input type=\"radio\" name=\"{name}\" value=\"{value}\"{checked}><span>{}</span></label>",
            escape(words)
        );
    }
    w.push_str("</fieldset>\n");
}

fn section(w: &mut String, r: &MatrixReport, lane: &MatrixLane, index: usize, look: Look) {
    let hosts: Vec<&MatrixHost> = lane.hosts.iter().map(|h| &r.hosts[*h]).collect();
    let Some(first) = hosts.first() else { return };
    // What all have in common is said once.
    let origin = hosts.iter().all(|h| h.origin == first.origin).then_some(first.origin);
    let cpu = if !first.info.cpu.is_empty() && hosts.iter().all(|h| h.info.cpu == first.info.cpu) {
        format!(" · {}", escape(&first.info.cpu))
    } else {
        String::new()
    };
    let badge = |words: &str| match words {
        "" => String::new(),
        words => format!(" <em class=\"badge\">{}</em>", escape(words)),
    };
    let _ = writeln!(
        w,
        "<section class=\"lane\" data-lane=\"{index}\">\n<h2>{} <small>{}{cpu} · {} kernels · {} pairs</small>{}</h2>",
        escape(&lane.name),
        lane.arch.name(),
        hosts.len(),
        r.pairs_of(lane).count(),
        origin.map_or(String::new(), |o| badge(o.words())),
    );
    let _ = writeln!(
        w,
        "<div class=\"scroll\"><table class=\"grid\">\n<caption>Rows: the kernel that the guest comes from. Columns: the one it goes to.</caption>\n\
         <thead><tr><td class=\"corner\"><span>from ↓</span> <span>to →</span></td>"
    );
    for h in &hosts {
        let _ = write!(w, "<th scope=\"col\" title=\"{}\">{}</th>", tip(h), seams(&h.short));
    }
    w.push_str("</tr></thead>\n<tbody>\n");
    for from in &lane.hosts {
        let h = &r.hosts[*from];
        let point = match h.point_release.as_str() {
            point if point == h.short => "",
            point => point,
        };
        let _ = write!(
            w,
            "<tr><th scope=\"row\" title=\"{}\"><b>{}</b> <small>{}</small>{}</th>",
            tip(h),
            escape(&h.short),
            escape(point),
            if origin.is_none() { badge(h.origin.words()) } else { String::new() },
        );
        for to in &lane.hosts {
            match r.pairs.iter().position(|p| (p.from, p.to) == (*from, *to)) {
                Some(i) => {
                    let a = look.answer(&r.pairs[i]);
                    let _ = write!(
                        w,
                        "<td><button type=\"button\" data-pair=\"{i}\" class=\"{}\" tabindex=\"-1\" aria-label=\"{} to {}: {}\">{}</button></td>",
                        class(a),
                        escape(&h.short),
                        escape(&r.hosts[*to].short),
                        escape(&a.words()),
                        a.letters(),
                    );
                }
                None if from == to => w.push_str("<td class=\"self\"></td>"),
                None => w.push_str("<td class=\"self\" title=\"not asked\">-</td>"),
            }
        }
        w.push_str("</tr>\n");
    }
    w.push_str("</tbody></table></div>\n<div class=\"bar\" aria-label=\"How many pairs\">");
    for (n, a) in look.counts(r, lane).iter().zip(Answer::ALL).filter(|(n, _)| **n > 0) {
        let _ = write!(
            w,
            "<span class=\"{}\" style=\"flex-grow:{n}\" title=\"{}\">{} {n}</span>",
            class(a),
            escape(&a.words()),
            a.letters()
        );
    }
    w.push_str("</div>\n<details class=\"hosts\"><summary>What the names stand for</summary><div class=\"scroll\"><table><thead><tr>\
                <th>Host</th><th>Kernel and CPU</th><th>Offer digest</th><th></th></tr></thead><tbody>\n");
    for h in &hosts {
        let digest = h.info.offer_digest.strip_prefix("blake3:").unwrap_or(&h.info.offer_digest);
        let short: String = digest.chars().take(12).collect();
        let _ = writeln!(
            w,
            "<tr><th>{}</th><td>{}</td><td><code title=\"{}\">{}</code></td><td>{}</td></tr>",
            escape(&h.info.name),
            escape(&h.info.stands_for),
            escape(digest),
            escape(&short),
            badge(h.origin.words()),
        );
    }
    w.push_str("</tbody></table></div></details>\n</section>\n");
}

/// A heading that may be broken where the terminal's is.
fn seams(name: &str) -> String {
    pieces(name, 4)
        .map_or_else(|| escape(name), |p| p.iter().map(|p| escape(p)).collect::<Vec<_>>().join("<wbr>"))
}

fn tip(h: &MatrixHost) -> String {
    escape(&format!("{}: {}", h.info.name, h.info.stands_for))
}

fn not_asked(w: &mut String, r: &MatrixReport) {
    if r.not_asked.is_empty() {
        return;
    }
    w.push_str("<section><h2>Not asked</h2><ul>\n");
    for n in &r.not_asked {
        let (from, to) = (&r.hosts[n.from].info.name, &r.hosts[n.to].info.name);
        let _ = writeln!(w, "<li>{} to {}: {}</li>", escape(from), escape(to), escape(&n.why));
    }
    w.push_str("</ul></section>\n");
}
