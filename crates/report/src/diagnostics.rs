//! Diagnostics about a document, with the lines that they are about.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use evenkeel_surface::{Diagnostic, Severity};

/// The text of diagnostics over `source`, the document called `name`. At most what the reader collected, and never
/// more of the document than the lines concerned.
pub fn diagnostics(name: &str, source: &str, list: &[Diagnostic], colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for d in list {
        let level = if d.severity == Severity::Error { Level::ERROR } else { Level::WARNING };
        let title = level.primary_title(printable(&d.message)).id(d.code);
        let hint = printable(&d.hint);
        let window = window(source, d.span.clone());
        let mut group = match &window {
            Some(w) => Group::with_title(title).element(
                Snippet::source(w.text.as_str())
                    .line_start(w.line)
                    .path(name)
                    .fold(true)
                    .annotation(AnnotationKind::Primary.span(w.span.clone())),
            ),
            None => Group::with_title(title),
        };
        if !hint.is_empty() {
            group = group.element(Level::HELP.with_name("hint").message(hint));
        }
        out.push_str(&renderer.render(&[group]));
        out.push('\n');
    }
    out
}

/// Control characters of hostile text never reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

struct Window {
    text: String,
    line: usize,
    span: std::ops::Range<usize>,
}

/// The line of the span, cut to a readable length: a document may be one line of megabytes.
fn window(source: &str, span: std::ops::Range<usize>) -> Option<Window> {
    if source.is_empty() || span.start > source.len() || (span.start == 0 && span.end == 0) {
        return None;
    }
    let boundary = |mut at: usize| {
        at = at.min(source.len());
        while !source.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let at = boundary(span.start);
    let line = source[..at].bytes().filter(|b| *b == b'\n').count() + 1;
    let start = source[..at].rfind('\n').map_or(0, |n| n + 1);
    let end = source[at..].find('\n').map_or(source.len(), |n| at + n);
    let (from, to) = (start.max(boundary(at.saturating_sub(60))), end.min(boundary(at + 100)));
    let mut text = String::new();
    let mut spans = (0, 0);
    for (i, c) in source[from..to].char_indices() {
        if from + i == at {
            spans.0 = text.len();
        }
        text.push(if c.is_control() { ' ' } else { c });
        if from + i < span.end.max(at + 1) {
            spans.1 = text.len();
        }
    }
    if at >= to {
        spans = (text.len(), text.len());
    }
    Some(Window { text, line, span: spans.0..spans.1.max(spans.0) })
}
