//! The search for the first kernel that changes something: which to look at next, and what follows from what was seen.
//! It boots nothing: measuring is a function that the caller brings.

/// What was learnt of one candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measured<V> {
    /// Its value.
    Value(V),
    /// It could not be measured: it does not boot, or the archive does not have it any more.
    Skipped(String),
}

/// How a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bisection<V> {
    /// What became of each candidate, in order; nothing of those that nobody had to look at.
    pub measured: Vec<Option<Measured<V>>>,
    /// The conclusion.
    pub end: End,
}

/// What the measurements say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first and the last candidate show the same value: there is nothing to find between them.
    Same,
    /// An end of the range could not be measured, the index says which.
    NoEnd(usize),
    /// The change is between these two neighbours. Those between them, if any, could not be measured.
    Between {
        /// The last candidate with the first one's value.
        old: usize,
        /// The first candidate with another value.
        new: usize,
        /// Whether all that was measured changes once and stays: otherwise this is one change of several.
        monotonic: bool,
    },
}

/// Finds the first of `known.len()` candidates whose value is not that of the first one.
///
/// `known` holds what is known beforehand, at no cost. `measure` is called with a candidate's index and how many
/// candidates are still in question, at most `ceil(log2(n)) + 2` times plus once for each that it skips.
///
/// # Errors
/// Those of `measure`, which end the search.
pub fn bisect<V: PartialEq, E>(
    known: Vec<Option<V>>,
    mut measure: impl FnMut(usize, usize) -> Result<Measured<V>, E>,
) -> Result<Bisection<V>, E> {
    let mut measured: Vec<Option<Measured<V>>> =
        known.into_iter().map(|known| known.map(Measured::Value)).collect();
    let Some(last) = measured.len().checked_sub(1) else {
        return Ok(Bisection { measured, end: End::Same });
    };
    for end in [0, last] {
        if measured[end].is_none() {
            measured[end] = Some(measure(end, measured.len())?);
        }
        if !matches!(measured[end], Some(Measured::Value(_))) {
            return Ok(Bisection { measured, end: End::NoEnd(end) });
        }
    }
    if measured[0] == measured[last] {
        return Ok(Bisection { measured, end: End::Same });
    }
    loop {
        let (old, new) = edge(&measured, last);
        // The one nearest to the middle that nobody has looked at.
        let middle = |i: &usize| (2 * i).abs_diff(old + new);
        let open: Vec<usize> = (old + 1..new).filter(|i| measured[*i].is_none()).collect();
        let Some(next) = open.iter().copied().min_by_key(middle) else {
            let monotonic = monotonic(&measured);
            return Ok(Bisection { measured, end: End::Between { old, new, monotonic } });
        };
        measured[next] = Some(measure(next, open.len())?);
    }
}

/// The first candidate known to show another value than the first one, and the last one before it known to show the
/// same.
fn edge<V: PartialEq>(measured: &[Option<Measured<V>>], last: usize) -> (usize, usize) {
    let value = |i: usize| matches!(measured[i], Some(Measured::Value(_)));
    let same = |i: usize| value(i) && measured[i] == measured[0];
    let new = (1..=last).find(|i| value(*i) && !same(*i)).unwrap_or(last);
    let old = (0..new).rev().find(|i| same(*i)).unwrap_or(0);
    (old, new)
}

/// Whether the values that were measured change exactly once.
fn monotonic<V: PartialEq>(measured: &[Option<Measured<V>>]) -> bool {
    let values: Vec<&V> = measured
        .iter()
        .filter_map(|m| match m {
            Some(Measured::Value(value)) => Some(value),
            _ => None,
        })
        .collect();
    values.windows(2).filter(|pair| pair[0] != pair[1]).count() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Searches `values`, counts, and skips those that do not boot.
    fn search(values: &[u8], dead: &[usize], known: &[usize]) -> (Bisection<u8>, usize, usize) {
        let (mut asked, mut skipped) = (0, 0);
        let known = (0..values.len()).map(|i| known.contains(&i).then(|| values[i])).collect();
        let found = bisect(known, |i, _| {
            if dead.contains(&i) {
                skipped += 1;
                return Ok::<_, ()>(Measured::Skipped("dead".to_owned()));
            }
            asked += 1;
            Ok(Measured::Value(values[i]))
        });
        (found.unwrap(), asked, skipped)
    }

    #[test]
    fn nothing_to_find_is_said() {
        assert_eq!(search(&[], &[], &[]).0.end, End::Same);
        assert_eq!(search(&[1], &[], &[]).0.end, End::Same);
        assert_eq!(search(&[1, 2, 1], &[], &[]).0.end, End::Same);
        assert_eq!(search(&[1, 2], &[1], &[]).0.end, End::NoEnd(1));
        assert_eq!(search(&[1, 2], &[], &[]).0.end, End::Between { old: 0, new: 1, monotonic: true });
    }

    #[test]
    fn a_value_that_comes_and_goes_is_said() {
        // Known beforehand: at 2 it has changed, at 4 it is back, at the end it has changed again.
        let (found, ..) = search(&[0, 0, 1, 1, 0, 0, 1], &[], &[0, 2, 4, 6]);
        assert_eq!(found.end, End::Between { old: 1, new: 2, monotonic: false });
    }

    #[test]
    fn a_third_value_ends_the_old_one() {
        let (found, ..) = search(&[0, 0, 0, 5, 5, 7, 7, 7], &[], &[]);
        assert_eq!(found.end, End::Between { old: 2, new: 3, monotonic: false });
    }

    proptest! {
        #[test]
        fn the_first_change_is_found_in_few_steps(n in 2usize..200, at in 1usize..200) {
            let at = at.min(n - 1);
            let values: Vec<u8> = (0..n).map(|i| u8::from(i >= at)).collect();
            let (found, asked, _) = search(&values, &[], &[]);
            prop_assert_eq!(found.end, End::Between { old: at - 1, new: at, monotonic: true });
            let steps = n.next_power_of_two().trailing_zeros() as usize;
            prop_assert!(asked <= steps + 2, "{asked} of {n}");
        }

        #[test]
        fn those_that_do_not_boot_are_stepped_over(
            n in 2usize..60,
            at in 1usize..60,
            dead in proptest::collection::vec(1usize..60, 0..30),
        ) {
            let at = at.min(n - 1);
            let values: Vec<u8> = (0..n).map(|i| u8::from(i >= at)).collect();
            let dead: Vec<usize> = dead.into_iter().filter(|i| *i < n - 1).collect();
            let (found, asked, skipped) = search(&values, &dead, &[]);
            let End::Between { old, new, monotonic } = found.end else { panic!("{found:?}") };
            prop_assert!(monotonic && old < at && at <= new);
            prop_assert!((old + 1..new).all(|i| dead.contains(&i)), "between {old} and {new} only dead ones");
            prop_assert!(!dead.contains(&old) && !dead.contains(&new));
            let steps = n.next_power_of_two().trailing_zeros() as usize;
            prop_assert!(asked <= steps + 2 + skipped, "{asked}, {skipped} of {n}");
        }

        #[test]
        fn whatever_the_values_two_neighbours_that_differ_are_found(
            values in proptest::collection::vec(0u8..3, 2..60),
            known in proptest::collection::vec(0usize..60, 0..10),
        ) {
            let (found, ..) = search(&values, &[], &known);
            match found.end {
                End::Same => prop_assert_eq!(values[0], values[values.len() - 1]),
                End::Between { old, new, .. } => {
                    prop_assert_eq!(new, old + 1);
                    prop_assert_eq!(values[old], values[0]);
                    prop_assert_ne!(values[new], values[0]);
                }
                End::NoEnd(_) => prop_assert!(false),
            }
        }
    }
}
