//! What is said of capsules, for people.

use std::fmt::Write as _;

use super::diff::CapsuleDiff;
use super::inspect::InspectReport;

/// The text of `evenkeel inspect`. `all`: fields that are zero, too.
pub fn inspect(r: &InspectReport, all: bool) -> String {
    let mut out = String::new();
    let w = &mut out;
    let h = &r.header;
    let _ = writeln!(w, "{}: a guest of {}, {} bytes", r.file, h.arch, h.length);
    let _ = writeln!(w, "  identity {}\n  guest    {}", h.root, h.id);
    let _ = writeln!(
        w,
        "  format {}, for readers from {}; {}, pages of {}",
        h.format, h.reader, h.layout, h.page
    );
    if let Some(m) = &r.memory {
        let _ = writeln!(w, "  memory: {} KiB in chunks of {} KiB", m.bytes >> 10, m.chunk >> 10);
        for (address, length) in &m.regions {
            let _ = writeln!(w, "    {length} bytes at {address}");
        }
        let kinds =
            [(m.zero, "zero"), (m.raw, "raw"), (m.zstd, "compressed"), (m.pages, "without zero pages")];
        let kinds: Vec<String> =
            kinds.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        let _ = writeln!(w, "    chunks: {}", kinds.join(", "));
    }
    let _ = writeln!(w, "\n  {:<32} {:>10} {:>10}  digest", "section", "offset", "bytes");
    for s in &r.sections {
        let digest = s.digest.get(7..23).unwrap_or("");
        let kind = if s.critical { "" } else { ", optional" };
        let _ =
            writeln!(w, "  {:<32} {:>10} {:>10}  {digest}… v{}{kind}", s.name, s.offset, s.length, s.version);
    }
    for s in &r.sections {
        let shown: Vec<_> = s.fields.iter().filter(|field| all || !field.zero).collect();
        if !s.known {
            let _ = writeln!(w, "\n{}: not known to this version; carried through as it is", s.name);
        } else if !s.unreadable.is_empty() {
            let _ = writeln!(w, "\n{}", s.unreadable);
        } else if !s.fields.is_empty() {
            let _ = writeln!(w, "\n{}", s.name);
        }
        let width = shown.iter().map(|field| field.name.len()).max().unwrap_or(0).min(40);
        for field in &shown {
            let rule = if field.rule.is_empty() { String::new() } else { format!("  ({})", field.rule) };
            let _ = writeln!(w, "  {:<width$}  {}{rule}", field.name, field.value);
        }
        let zeros = s.fields.len() - shown.len();
        if zeros > 0 {
            let _ = writeln!(w, "  {zeros} more are zero");
        }
    }
    for gap in &r.gaps {
        let _ = writeln!(w, "\nnot saved: {}", gap.what);
    }
    if r.verified {
        let _ = writeln!(w, "\nEvery byte is as it was written.");
    }
    out
}

/// The text of `evenkeel diff` of two capsules. `all`: what time explains, too.
pub fn diff(r: &CapsuleDiff, all: bool) -> String {
    let mut out = String::new();
    let w = &mut out;
    for side in [&r.old, &r.new] {
        let _ = writeln!(w, "{}  {}", side.file, side.root);
    }
    if r.old.id == r.new.id {
        let _ = writeln!(w, "The same guest at the same moment: {}.", r.old.id);
    }
    let mut last = "";
    for field in r.fields.iter().filter(|field| all || !field.expected) {
        if last != field.section {
            let _ = writeln!(w, "\n{}", field.section);
            last = &field.section;
        }
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        let _ = write!(w, "  {:<24} {} -> {}", field.field, value(&field.old), value(&field.new));
        let notes: Vec<&str> =
            [field.rule.as_str(), if field.expected { "as expected" } else { field.why.as_str() }]
                .into_iter()
                .filter(|note| !note.is_empty())
                .collect();
        let _ = writeln!(
            w,
            "{}",
            if notes.is_empty() { String::new() } else { format!("  ({})", notes.join(", ")) }
        );
    }
    for section in &r.sections {
        let bytes = |n: Option<u64>| n.map_or("nothing".to_owned(), |n| format!("{n} bytes"));
        let _ = writeln!(w, "\n{}  {} -> {}", section.name, bytes(section.old), bytes(section.new));
    }
    if let Some(hosts) = &r.hosts {
        let _ = writeln!(w, "\n{}", evenkeel_report::diff(hosts, all));
    }
    let expected = r.fields.iter().filter(|field| field.expected).count();
    let _ = writeln!(w);
    match (r.memory.comparable, r.memory.pages) {
        (false, _) => drop(writeln!(w, "memory: the regions or the chunks are not the same; not compared")),
        (true, 0) => drop(writeln!(w, "memory: the same")),
        (true, pages) => {
            let more = if pages > r.memory.first.len() as u64 { ", …" } else { "" };
            let _ = writeln!(w, "memory: {pages} pages differ, at {}{more}", r.memory.first.join(", "));
        }
    }
    let differ = r.fields.len() - expected;
    let _ = writeln!(w, "state: {differ} fields differ; {expected} more differ as time and KVM let them");
    out
}
