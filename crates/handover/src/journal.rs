//! The journal: what a side has promised, in records that are durable before the promise is made.
//!
//! A record is 64 bytes: `"EVKJ"`, version, kind, two zeros; the epoch (little-endian); the token; 16 zeros; and the first 16 bytes of
//! the BLAKE3 of all that. A crash while one is appended leaves a torn end, which counts as not written; anything else that
//! is not a record is damage, and nobody may decide anything by it.

use crate::{Epoch, Token};

/// Bytes of a record.
pub const RECORD: usize = 64;
const MAGIC: [u8; 4] = *b"EVKJ";
const VERSION: u8 = 1;
const BODY: usize = 48;

/// One promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Record {
    /// Source: the right to run is the destination's.
    Committed(Token, Epoch),
    /// Source: it came back, because the guest never ran there; or an operator said so.
    Returned(Token, Epoch),
    /// Destination: the guest runs here from now on.
    Running(Token, Epoch),
    /// Destination: it never ran here under this token and never will.
    NeverRan(Token),
    /// Source: the destination runs it.
    Gone(Token),
}

impl Record {
    /// The attempt that it is about.
    pub fn token(&self) -> Token {
        match *self {
            Record::Committed(token, _)
            | Record::Returned(token, _)
            | Record::Running(token, _)
            | Record::NeverRan(token)
            | Record::Gone(token) => token,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; RECORD] {
        let (kind, epoch) = match *self {
            Record::Committed(_, epoch) => (1, epoch),
            Record::Returned(_, epoch) => (2, epoch),
            Record::Running(_, epoch) => (3, epoch),
            Record::NeverRan(_) => (4, Epoch(0)),
            Record::Gone(_) => (5, Epoch(0)),
        };
        let mut bytes = [0; RECORD];
        bytes[..4].copy_from_slice(&MAGIC);
        (bytes[4], bytes[5]) = (VERSION, kind);
        bytes[8..16].copy_from_slice(&epoch.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.token().0);
        let check = check(&bytes);
        bytes[BODY..].copy_from_slice(&check);
        bytes
    }

    fn decode(bytes: &[u8; RECORD]) -> Option<Record> {
        if bytes[..4] != MAGIC || bytes[4] != VERSION || bytes[BODY..] != check(bytes) {
            return None;
        }
        let epoch = Epoch(u64::from_le_bytes(bytes[8..16].try_into().ok()?));
        let token = Token(bytes[16..32].try_into().ok()?);
        let record = match bytes[5] {
            1 => Record::Committed(token, epoch),
            2 => Record::Returned(token, epoch),
            3 => Record::Running(token, epoch),
            4 => Record::NeverRan(token),
            5 => Record::Gone(token),
            _ => return None,
        };
        // One way to write each: what has something in its zeros is another version's.
        (record.encode() == *bytes).then_some(record)
    }
}

fn check(bytes: &[u8; RECORD]) -> [u8; RECORD - BODY] {
    let mut check = [0; RECORD - BODY];
    check.copy_from_slice(&blake3::hash(&bytes[..BODY]).as_bytes()[..RECORD - BODY]);
    check
}

/// A journal is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal is damaged at byte {0}: what was promised there is unknown")]
pub struct Damaged(pub usize);

/// All records of one side about one guest, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// The records.
    pub records: Vec<Record>,
    /// How many bytes of the file they are: what is behind is a torn end, to be cut off before more is appended.
    pub bytes: usize,
}

impl Journal {
    /// Reads what a crash left.
    ///
    /// # Errors
    /// Something in it is no record, and not the torn end of an append.
    pub fn read(bytes: &[u8]) -> Result<Journal, Damaged> {
        let mut journal = Journal::default();
        for piece in bytes.chunks(RECORD) {
            let record = <&[u8; RECORD]>::try_from(piece).ok().and_then(Record::decode);
            let Some(record) = record else {
                // A file system may have made the file longer before it wrote what is in it. A record is within one sector, so
                // one that is there in full and wrong was right once.
                let torn = piece.len() < RECORD || piece[BODY..].iter().all(|byte| *byte == 0);
                let last = bytes.len() - journal.bytes <= RECORD;
                return if last && torn { Ok(journal) } else { Err(Damaged(journal.bytes)) };
            };
            journal.records.push(record);
            journal.bytes += RECORD;
        }
        Ok(journal)
    }

    /// What was written last about an attempt.
    pub fn fate(&self, token: Token) -> Option<Record> {
        self.records.iter().rev().find(|record| record.token() == token).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        (any::<[u8; 16]>(), any::<u64>(), 0..5).prop_map(|(token, epoch, kind)| {
            let (token, epoch) = (Token(token), Epoch(epoch));
            match kind {
                0 => Record::Committed(token, epoch),
                1 => Record::Returned(token, epoch),
                2 => Record::Running(token, epoch),
                3 => Record::NeverRan(token),
                _ => Record::Gone(token),
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in proptest::collection::vec(record(), 0..8)) {
            let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
            let journal = Journal::read(&bytes).unwrap();
            prop_assert_eq!(journal.bytes, bytes.len());
            prop_assert_eq!(journal.records, records);
        }

        #[test]
        fn a_torn_end_was_not_written(records in proptest::collection::vec(record(), 1..4), cut in 1..RECORD) {
            let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
            let journal = Journal::read(&bytes[..bytes.len() - cut]).unwrap();
            prop_assert_eq!(&journal.records[..], &records[..records.len() - 1]);
            prop_assert_eq!(journal.bytes, bytes.len() - RECORD);
            // The same with a file that was made longer first.
            let mut longer = bytes.clone();
            let end = longer.len();
            longer[end - RECORD..].fill(0);
            prop_assert_eq!(Journal::read(&longer), Ok(journal));
        }

        #[test]
        fn a_flipped_bit_is_damage(
            records in proptest::collection::vec(record(), 2..4),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
            let at = bit.index(bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(Journal::read(&bytes), Err(Damaged(at / 8 / RECORD * RECORD)));
        }

        #[test]
        fn any_bytes_are_a_journal_or_damage(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Journal::read(&bytes);
        }
    }
}
