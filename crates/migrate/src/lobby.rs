//! Who is connected to a destination and has not said what for, and who is let in.

use std::io;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use evenkeel_handover::DestinationAt as At;
use evenkeel_handover::greeting::{Features, Greeting, PROTOCOL};
use evenkeel_handover::wire::Frame;

use crate::connection::{Connection, Event};
use crate::policy::MOST_STREAMS;
use crate::receive::supported;
use crate::{PROGRAM, Stream};

/// The most connections that have not said what they are for: all streams of one source, and some strangers.
const MOST: usize = 2 * MOST_STREAMS as usize;
/// Who is refused may read why for so long.
const FAREWELL: Duration = Duration::from_millis(300);

/// A source with its streams.
pub(crate) struct Primary {
    pub greeting: Greeting,
    pub granted: Features,
    pub streams: u8,
    /// By number of the stream, as they come: the first is there, the others come in order or wait in the lobby.
    pub links: Vec<Connection>,
    /// Streams that came before those with a smaller number.
    early: Vec<(u8, Connection)>,
}

/// The lobby.
pub(crate) struct Lobby {
    events: SyncSender<Event>,
    patience: Duration,
    next: u64,
    waiting: Vec<(Connection, Instant)>,
    leaving: Vec<(Connection, Instant)>,
}

impl Lobby {
    pub fn new(events: SyncSender<Event>, patience: Duration) -> Lobby {
        Lobby { events, patience, next: 0, waiting: Vec::new(), leaving: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.waiting.len() < MOST
    }

    pub fn enter(&mut self, stream: Box<dyn Stream>) -> io::Result<()> {
        self.next += 1;
        let connection = Connection::new(stream, (self.next, 0), self.events.clone(), self.patience)?;
        self.waiting.push((connection, Instant::now()));
        Ok(())
    }

    pub fn leave(&mut self, id: u64) {
        self.waiting.retain(|(connection, _)| connection.id != id);
    }

    /// Who says nothing, and who was refused and had time to hear it.
    pub fn tidy(&mut self) {
        self.waiting.retain(|(_, since)| since.elapsed() < self.patience);
        self.leaving.retain(|(_, since)| since.elapsed() < FAREWELL);
    }

    /// Somebody says what it is for: `true` if there is a source now that was not there before; `false` for one more stream of the
    /// source that there is.
    pub fn greeted(
        &mut self,
        id: u64,
        bytes: &[u8],
        primary: &mut Option<Primary>,
        at: At,
        lacking: bool,
    ) -> Result<bool, String> {
        let Some(place) = self.waiting.iter().position(|(connection, _)| connection.id == id) else {
            return Ok(false);
        };
        let (connection, _) = self.waiting.swap_remove(place);
        let result = admit(&connection, bytes, primary, at, lacking);
        match result {
            Ok(Admitted::Source(greeting, granted, streams)) => {
                *primary =
                    Some(Primary { greeting, granted, streams, links: vec![connection], early: Vec::new() });
                Ok(true)
            }
            Ok(Admitted::Stream(number)) => {
                if let Some(primary) = primary {
                    primary.joined(number, connection);
                }
                Ok(false)
            }
            Err(why) => {
                // One that does not listen need not hear it.
                let _ = connection.tell(&Frame::Words(why.clone()));
                self.dismiss(connection);
                Err(why)
            }
        }
    }

    /// One that was told to go: for a while it may read why.
    pub fn dismiss(&mut self, connection: Connection) {
        self.leaving.truncate(MOST);
        self.leaving.push((connection, Instant::now()));
    }
}

impl Primary {
    fn joined(&mut self, number: u8, connection: Connection) {
        self.early.push((number, connection));
        while let Some(place) = self.early.iter().position(|(n, _)| usize::from(*n) == self.links.len()) {
            let (_, connection) = self.early.swap_remove(place);
            connection.pass();
            self.links.push(connection);
        }
    }
}

enum Admitted {
    Source(Greeting, Features, u8),
    Stream(u8),
}

fn admit(
    connection: &Connection,
    bytes: &[u8],
    primary: &Option<Primary>,
    at: At,
    lacking: bool,
) -> Result<Admitted, String> {
    let greeting = Greeting::decode(bytes)?;
    if let (1.., Some(primary)) = (greeting.stream, primary) {
        let number = greeting.stream;
        let known =
            usize::from(number) < primary.links.len() || primary.early.iter().any(|(n, _)| *n == number);
        if greeting.token == primary.greeting.token && number < primary.streams && !known {
            return Ok(Admitted::Stream(number));
        }
    }
    if greeting.stream > 0 {
        return Err(format!(
            "stream {} belongs to no move that is under way here; if one was, it ended: look at what the source says",
            greeting.stream
        ));
    }
    let ours = match at {
        At::Prepared(token, _) | At::Starting(token, _) | At::Doubtful(token, _) | At::Runs(token) => {
            token == greeting.token
        }
        _ => false,
    };
    if primary.is_some() && !ours {
        let what = if lacking { "gets its memory here" } else { "is on its way here" };
        return Err(format!(
            "a guest {what} from another source: wait until that is over, or choose another destination"
        ));
    }
    if !(1..=MOST_STREAMS).contains(&greeting.streams) {
        return Err(format!("{} streams are wanted, and 1 to {MOST_STREAMS} can be", greeting.streams));
    }
    let granted = supported().and(greeting.features);
    let answer = Greeting {
        protocols: (PROTOCOL, PROTOCOL),
        stream: 0,
        streams: greeting.streams,
        features: granted,
        token: greeting.token,
        memory: greeting.memory,
        offer: Vec::new(),
        program: PROGRAM.to_owned(),
    };
    connection.tell(&Frame::Hello(answer.encode())).map_err(|error| error.to_string())?;
    let streams = greeting.streams;
    Ok(Admitted::Source(greeting, granted, streams))
}
