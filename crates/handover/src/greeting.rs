//! The first frame of every stream, of both sides: who this is, what it can do, and what it is about.
//!
//! | bytes | little-endian |
//! |---|---|
//! | 0..4 | `"EVKH"` |
//! | 4..6, 6..8 | the oldest and the newest protocol that this side speaks; the newest that both do is spoken |
//! | 8 | number of this stream: 0 is the one with control and state |
//! | 9 | how many streams the source wants, or the destination grants |
//! | 10..12 | zeros |
//! | 12..16 | features: those that the source wants, or those of them that the destination grants |
//! | 16..32 | the token of the attempt |
//! | 32..40 | bytes of guest memory |
//! | 40..44 | bytes of the offer, which follows; then words about the program that speaks, to the end |

use crate::Token;

/// The protocol that this speaks.
pub const PROTOCOL: u16 = 1;
const MAGIC: [u8; 4] = *b"EVKH";
const HEAD: usize = 44;

/// What a side wants or grants beyond the protocol. Bits that a destination does not know it does not grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u32);

impl Features {
    /// Memory may come compressed with LZ4.
    pub const LZ4: Features = Features(1);
    /// All memory is hashed on both sides in the pause.
    pub const VERIFY: Features = Features(2);
    /// Memory may come after the commit.
    pub const POST_COPY: Features = Features(4);

    /// Whether all of these are among them.
    pub fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those and these.
    #[must_use]
    pub fn with(self, other: Features, when: bool) -> Features {
        if when { Features(self.0 | other.0) } else { self }
    }

    /// Those that both have.
    #[must_use]
    pub fn and(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

/// What a side says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The oldest and the newest protocol that it speaks.
    pub protocols: (u16, u16),
    /// The number of the stream.
    pub stream: u8,
    /// How many there are to be.
    pub streams: u8,
    /// What is wanted or granted.
    pub features: Features,
    /// The attempt.
    pub token: Token,
    /// Bytes of guest memory.
    pub memory: u64,
    /// What the destination has to know to say whether it takes the guest.
    pub offer: Vec<u8>,
    /// The program and its version; nothing is decided by it.
    pub program: String,
}

impl Greeting {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.offer.len() + self.program.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.protocols.0.to_le_bytes());
        bytes.extend_from_slice(&self.protocols.1.to_le_bytes());
        bytes.extend_from_slice(&[self.stream, self.streams, 0, 0]);
        bytes.extend_from_slice(&self.features.0.to_le_bytes());
        bytes.extend_from_slice(&self.token.0);
        bytes.extend_from_slice(&self.memory.to_le_bytes());
        bytes.extend_from_slice(&(self.offer.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.offer);
        bytes.extend_from_slice(self.program.as_bytes());
        bytes
    }

    /// Reads what a peer said.
    ///
    /// # Errors
    /// It is no greeting, or of protocols that this does not speak: which, and what helps.
    pub fn decode(bytes: &[u8]) -> Result<Greeting, String> {
        let no = || "this is no greeting of a move: something else speaks on this connection".to_owned();
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or_else(no)?;
        if head[..4] != MAGIC || head[10..12] != [0; 2] {
            return Err(no());
        }
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let protocols = (u16_at(4), u16_at(6));
        if !(protocols.0..=protocols.1).contains(&PROTOCOL) {
            return Err(format!(
                "the peer speaks the protocols {} to {}, and this one {PROTOCOL}: use a version of evenkeel on both sides \
                 that has one in common",
                protocols.0, protocols.1
            ));
        }
        let offer = u32_at(40) as usize;
        let (offer, program) = rest.split_at_checked(offer).ok_or_else(no)?;
        let (mut token, mut memory) = (Token([0; 16]), [0; 8]);
        token.0.copy_from_slice(&head[16..32]);
        memory.copy_from_slice(&head[32..40]);
        Ok(Greeting {
            protocols,
            stream: head[8],
            streams: head[9],
            features: Features(u32_at(12)),
            token,
            memory: u64::from_le_bytes(memory),
            offer: offer.to_vec(),
            program: std::str::from_utf8(program).map_err(|_| no())?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_as_it_was_said_and_others_are_refused() {
        let greeting = Greeting {
            protocols: (1, 4),
            stream: 3,
            streams: 8,
            features: Features::LZ4.with(Features::VERIFY, true),
            token: Token([7; 16]),
            memory: 1 << 30,
            offer: b"offer".to_vec(),
            program: "evenkeel 0.1".to_owned(),
        };
        let bytes = greeting.encode();
        assert_eq!(Greeting::decode(&bytes), Ok(greeting.clone()));
        for length in 0..bytes.len() - greeting.program.len() {
            assert!(Greeting::decode(&bytes[..length]).is_err(), "{length}");
        }
        let newer = Greeting { protocols: (2, 3), ..greeting }.encode();
        assert!(Greeting::decode(&newer).unwrap_err().contains("protocols 2 to 3"));
    }
}
