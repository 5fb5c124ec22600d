//! Peers that speak the protocol and lie.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use evenkeel_handover::greeting::{Features, Greeting};
use evenkeel_handover::wire::{Content, Decoder, Encoder, Frame};
use evenkeel_handover::{Digest, Epoch, Message, Reason, Token};

/// What a source says that is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceLie {
    Noise,
    NoGreeting,
    TwoGreetings,
    OtherProtocol,
    NoStreams,
    LongFrame,
    AnotherGuest,
    OtherToken,
    StrangeStream,
    StateFirst,
    MemoryOutside,
    PartOfAPage,
    Overlap,
    MoreThanItHas,
    OldRound,
    WrongBarrier,
    ShortSection,
    LongSection,
    SectionTwice,
    HugeSection,
    PackedWrong,
    PackedNotAgreed,
    MissingNotAgreed,
    VerifyNotAgreed,
    WrongDigest,
    CompleteAtOnce,
    CommitAtOnce,
    LateNotMissing,
    TinyFrames,
    Talks,
    Silent,
}

pub const SOURCES: [SourceLie; 31] = [
    SourceLie::Noise,
    SourceLie::NoGreeting,
    SourceLie::TwoGreetings,
    SourceLie::OtherProtocol,
    SourceLie::NoStreams,
    SourceLie::LongFrame,
    SourceLie::AnotherGuest,
    SourceLie::OtherToken,
    SourceLie::StrangeStream,
    SourceLie::StateFirst,
    SourceLie::MemoryOutside,
    SourceLie::PartOfAPage,
    SourceLie::Overlap,
    SourceLie::MoreThanItHas,
    SourceLie::OldRound,
    SourceLie::WrongBarrier,
    SourceLie::ShortSection,
    SourceLie::LongSection,
    SourceLie::SectionTwice,
    SourceLie::HugeSection,
    SourceLie::PackedWrong,
    SourceLie::PackedNotAgreed,
    SourceLie::MissingNotAgreed,
    SourceLie::VerifyNotAgreed,
    SourceLie::WrongDigest,
    SourceLie::CompleteAtOnce,
    SourceLie::CommitAtOnce,
    SourceLie::LateNotMissing,
    SourceLie::TinyFrames,
    SourceLie::Talks,
    SourceLie::Silent,
];

/// What a destination says that is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationLie {
    Noise,
    NoGreeting,
    OtherToken,
    RunsAtOnce,
    PreparedAtOnce,
    WrongDigest,
    NeverRan,
    RefusesLate,
    SendsMemory,
    WantsPages,
    Talks,
    Silent,
    Gone,
}

pub const DESTINATIONS: [DestinationLie; 13] = [
    DestinationLie::Noise,
    DestinationLie::NoGreeting,
    DestinationLie::OtherToken,
    DestinationLie::RunsAtOnce,
    DestinationLie::PreparedAtOnce,
    DestinationLie::WrongDigest,
    DestinationLie::NeverRan,
    DestinationLie::RefusesLate,
    DestinationLie::SendsMemory,
    DestinationLie::WantsPages,
    DestinationLie::Talks,
    DestinationLie::Silent,
    DestinationLie::Gone,
];

const TOKEN: Token = Token([66; 16]);
const PAGE: u64 = 4096;

fn greeting(token: Token) -> Greeting {
    Greeting {
        protocols: (1, 1),
        stream: 0,
        streams: 1,
        features: Features::default(),
        token,
        memory: 1024 * PAGE,
        offer: b"a guest".to_vec(),
        program: String::new(),
    }
}

struct Liar {
    socket: TcpStream,
    encoder: Encoder,
}

impl Liar {
    /// Says it; a peer that does not listen any more has refused.
    fn say(&mut self, frames: &[Frame]) -> bool {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| self.encoder.put(frame, &mut bytes).unwrap());
        self.socket.write_all(&bytes).is_ok()
    }
}

fn page(version: u32, page: u64) -> Frame {
    Frame::Memory { version, address: page * PAGE, content: Content::Bytes(vec![1; PAGE as usize]) }
}

fn section(name: &str, at: u64, total: u64, length: usize) -> Frame {
    Frame::Section { name: name.to_owned(), at, total, bytes: vec![0; length] }
}

/// Lies to a destination, and reads what it says until it ends the connection or has had enough time; returns its words.
pub fn to_destination(lie: SourceLie, address: SocketAddr, enough: Duration) -> String {
    use SourceLie as Lie;
    let socket = TcpStream::connect(address).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut liar = Liar { socket, encoder: Encoder::new(0) };
    let mut hello = greeting(TOKEN);
    match lie {
        Lie::Noise => drop(liar.socket.write_all(&[0x55; 5000])),
        Lie::LongFrame => {
            let mut bytes = Vec::new();
            Encoder::new(0).put(&Frame::Hello(hello.encode()), &mut bytes).unwrap();
            bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
            drop(liar.socket.write_all(&bytes));
        }
        Lie::NoGreeting => {
            liar.say(&[Frame::Control(Message::Offer(TOKEN, Epoch(4)))]);
        }
        Lie::Silent => {}
        _ => {
            match lie {
                Lie::OtherProtocol => hello.protocols = (7, 9),
                Lie::NoStreams => hello.streams = 0,
                Lie::AnotherGuest => hello.offer = b"a stranger".to_vec(),
                Lie::StrangeStream => hello.stream = 1,
                Lie::PackedWrong => hello.features = Features::LZ4,
                _ => {}
            }
            let token = if lie == Lie::OtherToken { Token([67; 16]) } else { TOKEN };
            liar.say(&[Frame::Hello(hello.encode())]);
            if lie != Lie::CommitAtOnce {
                liar.say(&[Frame::Control(Message::Offer(token, Epoch(4)))]);
            }
            lies(lie, &mut liar, &hello);
        }
    }
    listened(&mut liar.socket, enough)
}

fn lies(lie: SourceLie, liar: &mut Liar, hello: &Greeting) {
    use SourceLie as Lie;
    let memory = |address, content| Frame::Memory { version: 0, address, content };
    let barrier = Frame::Barrier(0);
    let complete = Frame::Control(Message::Complete(TOKEN, Digest([1; 32])));
    let frames = match lie {
        Lie::TwoGreetings => vec![Frame::Hello(hello.encode())],
        Lie::StateFirst => vec![section("count", 0, 24, 24)],
        Lie::MemoryOutside => vec![page(0, 1 << 30)],
        Lie::PartOfAPage => vec![memory(100, Content::Bytes(vec![1; 50]))],
        Lie::Overlap => vec![page(0, 3), page(0, 3)],
        Lie::MoreThanItHas => vec![memory(0, Content::Zeros(0xffff_f000))],
        Lie::OldRound => vec![page(0, 3), barrier, page(0, 4)],
        Lie::WrongBarrier => vec![Frame::Barrier(5)],
        Lie::ShortSection => vec![barrier, section("a", 0, 100, 50), section("b", 0, 1, 1)],
        Lie::LongSection => vec![barrier, section("a", 0, 10, 10), section("a", 10, 20, 10)],
        Lie::SectionTwice => vec![barrier, section("a", 0, 1, 1), section("a", 0, 1, 1)],
        Lie::HugeSection => vec![barrier, section("a", 0, u64::MAX, 1)],
        Lie::PackedWrong | Lie::PackedNotAgreed => vec![memory(0, Content::Packed(4096, vec![9; 40]))],
        Lie::MissingNotAgreed => vec![Frame::Missing(vec![(0, 4096)])],
        Lie::VerifyNotAgreed => vec![Frame::Verify { address: 0, length: 4096, digest: [0; 32] }],
        Lie::WrongDigest => vec![page(0, 3), barrier, section("count", 0, 24, 24), complete],
        Lie::CompleteAtOnce => vec![complete],
        Lie::CommitAtOnce => vec![Frame::Control(Message::Commit(TOKEN, Epoch(4)))],
        Lie::LateNotMissing => vec![page(u32::MAX, 3)],
        _ => Vec::new(),
    };
    liar.say(&frames);
    match lie {
        Lie::TinyFrames => {
            liar.say(&[Frame::Barrier(0)]);
            let tiny: Vec<Frame> = (0..1_000_u32).map(|n| section(&format!("{n:x}"), 0, 0, 0)).collect();
            for round in 0..1_000 {
                let frames: Vec<Frame> = tiny
                    .iter()
                    .map(|frame| match frame {
                        Frame::Section { name, .. } => section(&format!("{round}.{name}"), 0, 0, 0),
                        other => other.clone(),
                    })
                    .collect();
                if !liar.say(&frames) {
                    return;
                }
            }
        }
        Lie::Talks => {
            let words = vec![Frame::Words("listen".to_owned()); 1_000];
            for _ in 0..1_000 {
                if !liar.say(&words) {
                    return;
                }
            }
        }
        _ => {}
    }
}

/// What a peer says until it ends the connection.
fn listened(socket: &mut TcpStream, enough: Duration) -> String {
    let (mut decoder, mut piece, mut words) = (Decoder::any(), vec![0; 4096], String::new());
    let begin = Instant::now();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while begin.elapsed() < enough {
        let mut arrived = match socket.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => &piece[..length],
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        while let Ok(Some(frame)) = decoder.take(&mut arrived) {
            match frame {
                Frame::Words(said) => words += &said,
                // It was refused, or nothing came of it.
                Frame::Control(Message::Refuse(..) | Message::NeverRan(_)) => return words,
                _ => {}
            }
        }
    }
    words
}

/// A destination that lies to whoever comes first, and then is gone.
pub fn destination(lie: DestinationLie, listener: &TcpListener, token: Token) {
    use DestinationLie as Lie;
    let Ok((socket, _)) = listener.accept() else { return };
    if lie == Lie::Gone {
        return;
    }
    let mut liar = Liar { socket: socket.try_clone().unwrap(), encoder: Encoder::new(0) };
    match lie {
        Lie::Noise => drop(liar.socket.write_all(&[0x55; 5000])),
        Lie::NoGreeting | Lie::Silent => {}
        Lie::OtherToken => {
            liar.say(&[Frame::Hello(greeting(TOKEN).encode())]);
        }
        _ => {
            liar.say(&[Frame::Hello(greeting(token).encode())]);
        }
    }
    let accept = Frame::Control(Message::Accept(token));
    let digest = Digest([3; 32]);
    match lie {
        Lie::NoGreeting | Lie::WrongDigest | Lie::RefusesLate => {
            liar.say(&[accept]);
        }
        Lie::RunsAtOnce => {
            liar.say(&[Frame::Control(Message::Running(token)), accept]);
        }
        Lie::PreparedAtOnce => {
            liar.say(&[accept, Frame::Control(Message::Prepared(token, digest))]);
        }
        Lie::NeverRan => {
            liar.say(&[accept, Frame::Control(Message::NeverRan(token))]);
        }
        Lie::SendsMemory => {
            liar.say(&[accept, page(0, 1)]);
        }
        Lie::WantsPages => {
            liar.say(&[accept, Frame::Want(4096)]);
        }
        Lie::Talks => {
            liar.say(&[accept]);
            let words = vec![Frame::Words("listen".to_owned()); 1_000];
            while liar.say(&words) {}
        }
        _ => {}
    }
    // It reads on, until the source is done with it.
    let (mut decoder, mut piece) = (Decoder::any(), vec![0; 64 << 10]);
    let mut socket = socket;
    while let Ok(length @ 1..) = socket.read(&mut piece) {
        let mut arrived = &piece[..length];
        while let Ok(Some(frame)) = decoder.take(&mut arrived) {
            if let Frame::Barrier(_) = frame {
                liar.say(std::slice::from_ref(&frame));
            }
            if let Frame::Control(Message::Complete(..)) = frame {
                match lie {
                    Lie::WrongDigest => {
                        liar.say(&[Frame::Control(Message::Prepared(token, digest))]);
                    }
                    Lie::RefusesLate => {
                        liar.say(&[Frame::Control(Message::Refuse(token, Reason::Engine))]);
                    }
                    _ => {}
                }
            }
        }
    }
}
