//! What the build refuses of the layouts of state: the build script's own check, given small wrong data. A rule that no longer
//! bites fails here.
#![allow(dead_code, reason = "the build script is taken in whole, and only its checks are called")]

#[path = "../build/main.rs"]
mod build;

pub use build::*;

/// A section with one structure, and a quantity of time that runs in it.
const SOUND: &str = r#"
[[section]]
name = "s"
title = "a section"
get = "KVM_GET_S"
set = "KVM_SET_S"

[[layout]]
section = "s"
size = 24
field = [
  { name = "plain", at = 0, size = 8 },
  { name = "masked", at = 8, size = 4, compare = "masked", ignore = 1, why = "KVM writes the bit" },
  { name = "padding", at = 12, size = 4 },
  { name = "clock", at = 16, size = 8, compare = "monotonic", clock = "nanoseconds", why = "it is a clock" },
]

[[time]]
of = "s/clock"
clock = "nanoseconds"
why = "it is a clock"
sources = ["the test"]
"#;

/// What is wrong with the data after one replacement.
fn problems(replace: &str, with: &str) -> Vec<String> {
    assert!(SOUND.contains(replace), "{replace}");
    let mut data: Data = toml::from_str(&SOUND.replacen(replace, with, 1)).expect("TOML");
    let mut problems = Vec::new();
    layouts::lay_out(&mut data, &mut problems);
    layouts::check(&data, &mut problems);
    problems
}

#[test]
fn sound_data_is_not_refused() {
    assert_eq!(problems("plain", "plain"), Vec::<String>::new());
}

#[test]
fn each_rule_of_the_layouts_bites() {
    let plain = r#"{ name = "plain", at = 0, size = 8 }"#;
    let runs = |field: &str, clock: &str| {
        format!(
            r#"{{ name = "plain", at = 0, size = 8, compare = "{field}", clock = "{clock}", why = "so it is said" }}"#
        )
    };
    let cases = [
        ("what is no time does not run", plain, runs("monotonic", "tsc"), "no quantity of time"),
        ("nor is it armed again", plain, runs("rearmed", "tsc"), "no quantity of time"),
        ("what runs has a clock", plain, runs("monotonic", ""), "has a clock"),
        (
            "what has a clock runs",
            plain,
            r#"{ name = "plain", at = 0, size = 8, clock = "tsc" }"#.to_owned(),
            "has a clock",
        ),
        ("one clock", r#"of = "s/clock""#, r#"of = "s/plain""#.to_owned(), "nothing that runs"),
        ("the same clock", r#"clock = "nanoseconds", why"#, r#"clock = "tsc", why"#.to_owned(), "is time of"),
        ("every rule has its reason", r#", why = "KVM writes the bit""#, String::new(), "says why"),
        (
            "and what has none is as it is",
            plain,
            r#"{ name = "plain", at = 0, size = 8, why = "?" }"#.to_owned(),
            "says why",
        ),
        ("ignored bits are masked", "ignore = 1, ", String::new(), "if and only if it is compared masked"),
        ("fields do not overlap", "at = 8, size = 4", "at = 4, size = 4".to_owned(), "belongs to"),
        (
            "every byte has a name",
            r#"  { name = "padding", at = 12, size = 4 },"#,
            String::new(),
            "has no name",
        ),
        ("the structure has its size", "size = 24", "size = 32".to_owned(), "end at 24"),
        ("names are there once", r#""padding""#, r#""plain""#.to_owned(), "one that another has"),
        ("a layout has a section", r#"section = "s""#, r#"section = "t""#.to_owned(), "which is no section"),
    ];
    for (rule, replace, with, says) in cases {
        let found = problems(replace, &with);
        assert!(found.iter().any(|p| p.contains(says)), "{rule}: {found:?}");
    }
}
