//! Order among versions of Debian packages, as deb-version(7) defines it: which of two kernels is the newer one.

use std::cmp::Ordering;

/// Compares two versions. Any text is a version to it; there is an order among all of them.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (ea, ua, ra) = parts(a);
    let (eb, ub, rb) = parts(b);
    runs(ea, eb).then_with(|| runs(ua, ub)).then_with(|| runs(ra, rb))
}

/// Epoch, upstream version and revision. What is not there counts as nothing, which equals zero.
fn parts(version: &str) -> (&str, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// Stretches of other characters and stretches of digits in turns; the first pair that differs decides.
fn runs(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let (words, numbers) = (take(&mut a, &mut b, false), take(&mut a, &mut b, true));
        let decided = letters(words.0, words.1).then_with(|| number(numbers.0, numbers.1));
        if decided.is_ne() {
            return decided;
        }
    }
    Ordering::Equal
}

/// Cuts the leading stretch of digits, or of what is no digit, off both.
fn take<'a>(a: &mut &'a [u8], b: &mut &'a [u8], digits: bool) -> (&'a [u8], &'a [u8]) {
    let cut = |text: &mut &'a [u8]| {
        let end = text.iter().position(|c| c.is_ascii_digit() != digits).unwrap_or(text.len());
        let (stretch, rest) = text.split_at(end);
        *text = rest;
        stretch
    };
    (cut(a), cut(b))
}

/// `~` before the end, the end before letters, letters before everything else.
fn letters(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |c: Option<&u8>| match c {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    };
    let differing = (0..a.len().max(b.len())).map(|i| rank(a.get(i)).cmp(&rank(b.get(i))));
    differing.into_iter().find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

fn number(a: &[u8], b: &[u8]) -> Ordering {
    let plain = |digits: &[u8]| {
        let zeroes = digits.iter().take_while(|c| **c == b'0').count();
        digits[zeroes..].to_vec()
    };
    let (a, b) = (plain(a), plain(b));
    a.len().cmp(&b.len()).then_with(|| a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Ascending.
    const VERSIONS: &[&str] = &[
        "5.10.223-1",
        "5.10.262-1",
        "6.1~rc3-1~exp1",
        "6.1.192-2",
        "6.12.43-1~bpo12+1",
        "6.12.74-2~bpo12+1",
        "6.12.74-2",
        "6.12.74-2+deb13u1",
        "6.12.85-1~bpo12+1",
        "6.12.117-1",
        "7.0.13-1~bpo13+1",
        "7.3.4-1~bpo13+1",
        "1:1.0-1",
    ];

    #[test]
    fn kernels_are_in_the_order_of_their_making() {
        for (i, a) in VERSIONS.iter().enumerate() {
            for (j, b) in VERSIONS.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
    }

    /// The reference is the program that Debian orders its packages by.
    #[test]
    fn dpkg_says_the_same() {
        let odd = ["", "0", "1.0", "1.00", "1.0-0", "1.0~~", "1.0~", "1.0a", "1.0+", "1.0-1.1", "01.0-1"];
        let all: Vec<&str> = VERSIONS.iter().chain(&odd).copied().filter(|v| !v.is_empty()).collect();
        for a in &all {
            for b in &all {
                let done = Command::new("dpkg").args(["--compare-versions", a, "lt", b]).status();
                let less = done.expect("dpkg is on every Debian machine").success();
                assert_eq!(compare_versions(a, b).is_lt(), less, "{a} < {b}");
            }
        }
    }
}
