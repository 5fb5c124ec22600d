//! Who moves the guest, and what others may ask for meanwhile.

use super::protocol::{Code, Command, Leave, Leaving, Refused};

/// The client that moves the guest away.
#[derive(Debug)]
pub(super) struct Mover {
    /// Its number; 0 when it is gone.
    pub client: u64,
    /// The right to run was, or was about to be, given away under this token.
    pub token: Option<String>,
}

impl Mover {
    /// What is told of it.
    pub fn told(&self) -> Leaving {
        Leaving { token: self.token.clone() }
    }

    /// A client wants something: whether it may, and what that makes of the move.
    ///
    /// # Errors
    /// It may not.
    pub fn hears(mover: &mut Option<Mover>, client: u64, command: &Command) -> Result<(), Refused> {
        let step = match (command, &*mover) {
            (Command::Leave(step), _) => step,
            (Command::Status | Command::Metrics | Command::Subscribe, _) | (_, None) => return Ok(()),
            (_, Some(Mover { token: Some(token), .. })) => {
                let why = format!("the right to run this guest was given away under token {token}");
                let hint = "`evenkeel migrate --settle` asks the destination whether it runs there";
                return Err(Refused::new(Code::Leaving, why).hinting(hint));
            }
            (_, Some(_)) => {
                let why = Refused::new(Code::Leaving, "the guest is moving away");
                return Err(why.hinting("end `evenkeel migrate` first, if it is to stay"));
            }
        };
        let given = mover.as_ref().and_then(|mover| mover.token.as_deref());
        let own = mover.as_ref().is_none_or(|mover| mover.client == client);
        match (step, given) {
            // Who knows the token speaks for the one that gave it away.
            (Leave::Back(Some(token)) | Leave::Gone(token), Some(given)) if token == given => *mover = None,
            (_, Some(given)) => {
                return Err(Refused::new(Code::Leaving, format!("it is given away under token {given}")));
            }
            (_, None) if !own => return Err(Refused::new(Code::Leaving, "another client moves this guest")),
            (Leave::Back(_), None) => *mover = None,
            (Leave::Gone(_), None) => {
                return Err(Refused::new(Code::Phase, "the right to run was not given away"));
            }
            (Leave::Commit(token), None) => *mover = Some(Mover { client, token: Some(token.clone()) }),
            (_, None) => *mover = Some(Mover { client, token: None }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mover_moves_and_only_its_token_settles() {
        let mut mover = None;
        let mut hears = |client, command| Mover::hears(&mut mover, client, &command).map_err(|e| e.code);
        let leave = Command::Leave;
        hears(1, Command::Pause).unwrap();
        hears(1, leave(Leave::Track)).unwrap();
        assert_eq!(hears(2, leave(Leave::State)), Err(Code::Leaving));
        assert_eq!(hears(2, Command::Resume), Err(Code::Leaving));
        hears(2, Command::Status).unwrap();
        assert_eq!(hears(1, leave(Leave::Gone("a".to_owned()))), Err(Code::Phase));
        hears(1, leave(Leave::Commit("a".to_owned()))).unwrap();
        assert_eq!(hears(1, leave(Leave::Back(None))), Err(Code::Leaving));
        assert_eq!(hears(1, Command::Resume), Err(Code::Leaving));
        assert_eq!(hears(3, leave(Leave::Back(Some("b".to_owned())))), Err(Code::Leaving));
        hears(3, leave(Leave::Back(Some("a".to_owned())))).unwrap();
        hears(2, Command::Resume).unwrap();
    }
}
