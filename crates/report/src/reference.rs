//! The ledger as pages: Markdown, one page a component, and one HTML page that can be searched and filtered.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use evenkeel_catalog::{Arch, Blast, CHANGES, Change, Disposition, Explains, Status};

fn arch(a: Arch) -> &'static str {
    match a {
        Arch::X86_64 => "x86",
        Arch::Aarch64 => "arm64",
    }
}

fn status(s: Status) -> &'static str {
    match s {
        Status::Available => "can be selected",
        Status::Partial => "in part",
        Status::None => "cannot be selected",
        Status::NotNeeded => "stays until asked",
    }
}

fn disposition(d: Disposition) -> &'static str {
    match d {
        Disposition::DefaultChange => "default change",
        Disposition::NewFeature => "new feature",
        Disposition::OptIn => "opt-in",
        Disposition::SecurityFix => "security fix",
        Disposition::ArchitectureFix => "architecture fix",
        Disposition::Removal => "removal",
        Disposition::StateFormat => "state format",
        Disposition::UapiOnly => "uAPI only",
    }
}

fn blast(b: Blast) -> &'static str {
    match b {
        Blast::EveryGuest => "every guest",
        Blast::ManyGuests => "many guests",
        Blast::FewGuests => "few guests",
        Blast::OnlyVmm => "the VMM only",
    }
}

fn kernels(c: &Change) -> String {
    let k = &c.kernels;
    let parts = [
        ("last without", k.last_without),
        ("first with", k.first_with),
        ("mainline", k.mainline),
        ("stable", k.stable),
    ];
    let told: Vec<String> =
        parts.iter().filter(|(_, v)| !v.is_empty()).map(|(w, v)| format!("{w} {v}")).collect();
    told.join("; ")
}

fn detect(c: &Change) -> String {
    let d = &c.detect;
    match (d.probe, d.observe) {
        ("", "") => format!("not at all: {}", d.undetectable),
        ("", name) => format!("only from inside a guest: `{name}`"),
        (probe, _) => probe.to_owned(),
    }
}

fn subject(e: &Explains) -> String {
    let name = if e.facet.is_empty() { e.item } else { e.facet };
    match (e.before, e.after) {
        ("", "") => format!("`{name}`"),
        (b, a) => format!(
            "`{name}` {} → {}",
            if b.is_empty() { "any" } else { b },
            if a.is_empty() { "any" } else { a }
        ),
    }
}

/// The Markdown pages, by file name: one a component, and an index.
pub fn markdown() -> BTreeMap<String, String> {
    let mut components: BTreeMap<String, Vec<&Change>> = BTreeMap::new();
    for c in CHANGES {
        components.entry(format!("{}-{}", arch(c.arch), c.component)).or_default().push(c);
    }
    let mut pages = BTreeMap::new();
    let mut index = String::from(
        "# The ledger\n\nWhat is known about guest-visible changes of KVM. Made from `crates/catalog/data/ledger` by `cargo xtask reference`;\n\
         edit there. [index.html](index.html) is the same, to search and filter.\n\n| page | entries |\n|---|---|\n",
    );
    for (name, changes) in &components {
        let _ = writeln!(index, "| [{name}]({name}.md) | {} |", changes.len());
        let mut page = format!("# {name}\n\n");
        for c in changes {
            let _ = writeln!(page, "## {} {}\n\n{}\n", c.id, c.title, c.summary);
            let mut line = |what: &str, text: &str| {
                if !text.is_empty() {
                    let _ = writeln!(page, "- **{what}:** {text}");
                }
            };
            line("A guest observes", c.guest_observes);
            line("Who could notice", c.blast_words);
            line("Sort", disposition(c.disposition));
            line("Kernels", &kernels(c));
            line("The old behaviour", status(c.selector.status));
            line("Steps", &c.selector.steps.join("; "));
            line("Duty", c.selector.duty);
            line("Refuse", c.selector.refusal);
            line("The way back", c.rollback);
            line("Told by", &detect(c));
            line("Explains", &c.explains.iter().map(subject).collect::<Vec<_>>().join(", "));
            line("Sources", &c.sources.join("; "));
            page.push('\n');
        }
        pages.insert(format!("{name}.md"), page);
    }
    pages.insert("README.md".to_owned(), index);
    pages
}

/// Text for an element or a quoted attribute.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The self-contained HTML page.
pub fn html() -> String {
    let mut out = String::from(HEAD);
    for c in CHANGES {
        let e = |t: &str| escape(t);
        let _ = writeln!(
            out,
            "<tr data-arch=\"{}\" data-status=\"{}\" data-sort=\"{}\" data-blast=\"{}\"><td><a id=\"{id}\" href=\"#{id}\">{id}</a></td>\
             <td>{}<br><small>{}</small></td><td><b>{}</b><p>{}</p><p class=\"more\">{}</p></td><td>{}</td><td>{}</td><td>{}</td></tr>",
            arch(c.arch),
            status(c.selector.status),
            disposition(c.disposition),
            blast(c.blast),
            arch(c.arch),
            e(c.component),
            e(c.title),
            e(c.summary),
            e(&[
                ("A guest observes: ", c.guest_observes.to_owned()),
                ("Steps: ", c.selector.steps.join("; ")),
                ("Duty: ", c.selector.duty.to_owned()),
                ("Refuse: ", c.selector.refusal.to_owned()),
                ("The way back: ", c.rollback.to_owned()),
                ("Told by: ", detect(c)),
                ("Explains: ", c.explains.iter().map(subject).collect::<Vec<_>>().join(", ")),
                ("Sources: ", c.sources.join("; ")),
            ]
            .iter()
            .filter(|(_, t)| !t.is_empty())
            .map(|(w, t)| format!("{w}{t}"))
            .collect::<Vec<_>>()
            .join(" ¶ "))
            .replace(" ¶ ", "<br>"),
            e(&kernels(c)),
            status(c.selector.status),
            blast(c.blast),
            id = c.id,
        );
    }
    out.push_str(TAIL);
    out
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">
<title>evenkeel: the ledger of guest-visible changes of KVM</title>
<style>
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:80rem;padding:0 1rem}
form{position:sticky;top:0;background:Canvas;padding:.6rem 0;display:flex;gap:.6rem;flex-wrap:wrap;align-items:center}
input{flex:1 1 20rem}input,select{font:inherit;padding:.3rem .5rem}
table{border-collapse:collapse;width:100%}td,th{vertical-align:top;text-align:left;padding:.5rem;border-top:1px solid color-mix(in srgb,CanvasText 20%,Canvas)}
td:nth-child(4){width:11rem}td:nth-child(5),td:nth-child(6){width:6rem}p{margin:.3rem 0}.more{font-size:.85em;opacity:.8}small{opacity:.7}tr:target{background:color-mix(in srgb,Highlight 20%,Canvas)}
</style>
<h1>Guest-visible changes of KVM</h1>
<form onsubmit=\"return false\"><input id=\"q\" type=\"search\" placeholder=\"Search: a facet, an MSR, a kernel, a word\" autofocus>
<select id=\"arch\"><option value=\"\">x86 and arm64</option><option>x86</option><option>arm64</option></select>
<select id=\"status\"><option value=\"\">any selector</option><option>can be selected</option><option>in part</option><option>cannot be selected</option><option>stays until asked</option></select>
<select id=\"sort\"><option value=\"\">any sort</option><option>default change</option><option>new feature</option><option>opt-in</option><option>security fix</option><option>architecture fix</option><option>removal</option><option>state format</option><option>uAPI only</option></select>
<select id=\"blast\"><option value=\"\">anybody</option><option>every guest</option><option>many guests</option><option>few guests</option><option>the VMM only</option></select>
<output id=\"n\"></output></form>
<table><thead><tr><th>Entry<th>Where<th>What<th>Kernels (hints)<th>Old behaviour<th>Who</thead><tbody>
";

const TAIL: &str = "</tbody></table>
<script>
const rows=[...document.querySelectorAll('tbody tr')].map(r=>[r,r.textContent.toLowerCase()]);
const ids=['arch','status','sort','blast'],by=id=>document.getElementById(id);
function show(){const words=by('q').value.toLowerCase().split(/\\s+/).filter(Boolean);let n=0;
for(const [r,t] of rows){const ok=words.every(w=>t.includes(w))&&ids.every(i=>!by(i).value||r.dataset[i]===by(i).value);r.hidden=!ok;n+=ok}
by('n').textContent=n+' of '+rows.length}
by('q').oninput=show;for(const i of ids)by(i).onchange=show;show();
</script></html>
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_on_a_page_and_in_the_html() {
        let (pages, html) = (markdown(), html());
        for c in CHANGES {
            assert!(pages.values().any(|p| p.contains(&format!("## {} ", c.id))), "{}", c.id);
            assert!(html.contains(&format!("id=\"{}\"", c.id)), "{}", c.id);
        }
        assert_eq!(html.matches("<tr data-arch").count(), CHANGES.len());
        assert!(!html.contains("http://") && !html.contains("src="), "self-contained");
    }
}
