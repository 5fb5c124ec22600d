//! The `#define`s of a header, without a compiler: what they are called, and their value where it is a plain one.

use std::collections::BTreeMap;
use std::fs;

/// A `#define` without arguments.
#[derive(Debug, PartialEq, Eq)]
pub enum Define {
    /// A number, or an expression of the few shapes that KVM's headers use for one.
    Number(u64),
    /// An ioctl on the type KVMIO, by its number.
    Ioctl(u32),
    /// A class of registers, shifted to its place in an id.
    Class(u64),
    /// Something else.
    Other,
}

/// Names and values, in the order of the names.
pub type Defines = BTreeMap<String, Define>;

/// Reads a header, or stops the test with the reason.
pub fn read(path: &str) -> Defines {
    parse(&fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}")))
}

/// The `#define`s of `text`.
pub fn parse(text: &str) -> Defines {
    let text = without_comments(&text.replace("\\\n", " "));
    let mut raw: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        let Some(define) = line.trim().strip_prefix('#').and_then(|l| l.trim_start().strip_prefix("define"))
        else {
            continue;
        };
        let define = define.trim_start();
        let end = define.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(define.len());
        let (name, body) = define.split_at(end);
        if !body.starts_with('(') {
            raw.insert(name, body.trim());
        }
    }
    let counted = devices(&text);
    let value = |name: &str, body: &str| {
        // An older name is defined by the newer one.
        let body = raw.get(body).copied().unwrap_or(body);
        let known = number(body).or_else(|| counted.get(name).copied());
        let numbered = known.map(Define::Number).or_else(|| ioctl(body).map(Define::Ioctl));
        numbered.or_else(|| class(body).map(Define::Class)).unwrap_or(Define::Other)
    };
    raw.iter().map(|(name, body)| ((*name).to_owned(), value(name, body))).collect()
}

/// The types of devices: an enumeration that the compiler counts, each also defined as itself for `#ifdef`.
fn devices(text: &str) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut last = 0;
    for entry in text.lines().filter_map(|line| line.trim().strip_suffix(',')) {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if name.starts_with("KVM_DEV_TYPE_") {
            last = number(value.trim()).unwrap_or(last + 1);
            found.insert(name.trim().to_owned(), last);
        }
    }
    found
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("/*") {
        out.push_str(before);
        // A comment over several lines ends the line that it begins on.
        let (inside, after) = comment.split_once("*/").unwrap_or((comment, ""));
        out.push(if inside.contains('\n') { '\n' } else { ' ' });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `12`, `0x3f`, `1UL`, `(1 << 4)`, `_BITULL(4)`.
fn number(body: &str) -> Option<u64> {
    let body = body.trim();
    if let Some(inner) = body.strip_prefix('(').and_then(|b| b.strip_suffix(')')) {
        return number(inner);
    }
    if let Some(bit) = ["_BITULL(", "_BITUL("].iter().find_map(|f| body.strip_prefix(f)) {
        return 1u64.checked_shl(u32::try_from(number(bit.strip_suffix(')')?)?).ok()?);
    }
    if let Some((left, right)) = body.split_once("<<") {
        return number(left)?.checked_shl(u32::try_from(number(right)?).ok()?);
    }
    let digits = body.trim_end_matches(['u', 'U', 'l', 'L']);
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    }
}

/// `_IOWR(KVMIO, 0x91, struct kvm_cpuid2)`.
fn ioctl(body: &str) -> Option<u32> {
    let call = ["_IO(", "_IOR(", "_IOW(", "_IOWR("].iter().find_map(|f| body.strip_prefix(f))?;
    let mut arguments = call.trim_end_matches(')').split(',').map(str::trim);
    (arguments.next()? == "KVMIO").then_some(())?;
    number(arguments.next()?).and_then(|n| u32::try_from(n).ok())
}

/// `(0x0010 << KVM_REG_ARM_COPROC_SHIFT)`.
fn class(body: &str) -> Option<u64> {
    let inner = body.trim().strip_prefix('(')?.strip_suffix(')')?;
    let (left, right) = inner.split_once("<<")?;
    (right.trim() == "KVM_REG_ARM_COPROC_SHIFT").then(|| number(left))?
}

#[test]
fn defines_are_read_as_a_compiler_would() {
    let text = "\
        enum kvm_device_type {\n\tKVM_DEV_TYPE_A\t= 1,\n#define KVM_DEV_TYPE_A\tKVM_DEV_TYPE_A\n\
        \tKVM_DEV_TYPE_B,\n#define KVM_DEV_TYPE_B\tKVM_DEV_TYPE_B\n\tKVM_DEV_TYPE_MAX,\n};\n\
        #define KVM_LATE /* is it\n * late */\n#  define KVM_SHIFTED\t(1ULL << 31) /* bit */\n\
        #define KVM_BIT _BITULL(3)\n#define KVM_OLD KVM_SHIFTED\n#define KVM_FN(x) ((x) + 1)\n\
        #define KVM_LONG \\\n\t\t_IOWR(KVMIO,  0x67, struct kvm_thing)\n#define KVM_PLAIN _IO(KVMIO, 0x80)\n\
        #define KVM_CLASS\t(0x0010 << KVM_REG_ARM_COPROC_SHIFT)\n#define VHOST_X _IO(VHOST_VIRTIO, 1)\n";
    let expected = [
        ("KVM_BIT", Define::Number(8)),
        ("KVM_CLASS", Define::Class(0x10)),
        ("KVM_DEV_TYPE_A", Define::Number(1)),
        ("KVM_DEV_TYPE_B", Define::Number(2)),
        ("KVM_LATE", Define::Other),
        ("KVM_LONG", Define::Ioctl(0x67)),
        ("KVM_OLD", Define::Number(1 << 31)),
        ("KVM_PLAIN", Define::Ioctl(0x80)),
        ("KVM_SHIFTED", Define::Number(1 << 31)),
        ("VHOST_X", Define::Other),
    ];
    assert_eq!(parse(text), expected.map(|(name, value)| (name.to_owned(), value)).into());
}
