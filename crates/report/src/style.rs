//! Colours, and the shaping of text. Every meaning that a colour carries is in the words too.

use anstyle::{AnsiColor, Style};
use evenkeel_contract::Outcome;

/// Headings.
pub const HEAD: Style = Style::new().bold();
/// Names of codes and entries.
pub const NAME: Style = AnsiColor::Cyan.on_default();
/// Asides.
pub const DIM: Style = Style::new().dimmed();

/// The colour of an outcome.
pub fn of(outcome: Outcome) -> Style {
    match outcome {
        Outcome::HoldsByDefault => AnsiColor::Green.on_default(),
        Outcome::HoldsWithSelectors | Outcome::HoldsWithDuties => AnsiColor::Blue.on_default(),
        Outcome::Unknown => AnsiColor::Yellow.on_default(),
        Outcome::No => AnsiColor::Red.on_default().bold(),
    }
}

/// `text` in a style.
pub fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// `text` in a style, filled with blanks to `width` first.
pub fn padded(style: Style, text: &str, width: usize) -> String {
    paint(style, &format!("{text:<width$}"))
}

/// Words broken into lines of at most `width`, each after the first behind `indent`.
pub fn wrap(text: &str, width: usize, indent: &str) -> String {
    let mut out = String::new();
    let mut column = indent.chars().count();
    for (i, word) in text.split_whitespace().enumerate() {
        let len = word.chars().count();
        if i > 0 && column + 1 + len > width {
            out.push('\n');
            out.push_str(indent);
            column = indent.chars().count();
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += len;
    }
    out
}

/// The width that text is laid out for.
pub const WIDTH: usize = 108;

/// Names collapsed: `msr.1db … msr.1de (4)` for runs, otherwise the first few and how many more.
pub fn collapse(names: &[&str], all: bool) -> String {
    let runs = runs(names);
    let shown = if all { runs.len() } else { 6 };
    let mut text = runs.iter().take(shown).map(|(t, _)| t.as_str()).collect::<Vec<_>>().join(", ");
    let rest: usize = runs.iter().skip(shown).map(|(_, n)| n).sum();
    if rest > 0 {
        text.push_str(&format!(" and {rest} more"));
    }
    text
}

fn runs(names: &[&str]) -> Vec<(String, usize)> {
    let number = |name: &str| {
        let (kind, rest) = name.split_once('.')?;
        (kind == "msr" || kind == "reg")
            .then(|| u64::from_str_radix(rest, 16).ok().map(|n| (kind.to_owned(), n)))?
    };
    let mut out: Vec<(String, usize)> = Vec::new();
    let mut i = 0;
    while i < names.len() {
        let mut j = i;
        while let (Some(a), Some(b)) = (number(names[j]), names.get(j + 1).and_then(|n| number(n))) {
            if a.0 == b.0 && b.1 == a.1 + 1 {
                j += 1;
            } else {
                break;
            }
        }
        match j - i {
            0 => out.push((names[i].to_owned(), 1)),
            n => out.push((format!("{} to {}", names[i], names[j]), n + 1)),
        }
        i = j + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_msrs_are_told_once() {
        assert_eq!(
            collapse(&["msr.1d9", "msr.1db", "msr.1dc", "msr.1dd", "msr.1de"], false),
            "msr.1d9, msr.1db to msr.1de"
        );
        let many: Vec<String> = (0..9).map(|i| format!("cpuid.{i}.0.eax")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(collapse(&many, false).ends_with("and 3 more"), "{}", collapse(&many, false));
        assert!(!collapse(&many, true).contains("more"));
    }

    #[test]
    fn wrapped_lines_are_short() {
        let text = wrap(&"word ".repeat(60), 40, "    ");
        assert!(text.lines().all(|l| l.chars().count() <= 40), "{text}");
        assert_eq!(text.split_whitespace().count(), 60);
    }
}
