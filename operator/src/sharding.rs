//! Which shard polls which endpoint: rendezvous hashing.
//!
//! Each shard bids for each endpoint with a hash of both, and the highest bid wins. A new shard then only
//! takes endpoints, about `1/(n+1)` of them, and none moves between the old ones; a removed shard only
//! gives its own away. Few endpoints may leave a shard with none by chance, which is not what a person who
//! asks for two shards expects. So a second pass gives each empty shard the endpoint it bid highest for,
//! from a shard that has others. With many endpoints that pass finds nothing to do.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The shard of each key, in the order of `keys`; each is below `shards`. No shard is empty unless there
/// are fewer keys than shards. The order of the keys changes nothing.
#[must_use]
pub fn assign(keys: &[&str], shards: usize) -> Vec<usize> {
    let shards = shards.max(1);
    let mut assigned: Vec<usize> = keys.iter().map(|key| highest_bidder(key, shards)).collect();
    let mut sizes = vec![0_usize; shards];
    for shard in &assigned {
        sizes[*shard] += 1;
    }
    for shard in 0..shards {
        if sizes[shard] > 0 {
            continue;
        }
        let taken = (0..keys.len())
            .filter(|at| sizes[assigned[*at]] > 1)
            .max_by_key(|at| (bid(keys[*at], shard), keys[*at]));
        if let Some(at) = taken {
            sizes[assigned[at]] -= 1;
            sizes[shard] += 1;
            assigned[at] = shard;
        }
    }
    assigned
}

fn highest_bidder(key: &str, shards: usize) -> usize {
    (0..shards)
        .max_by_key(|shard| (bid(key, *shard), *shard))
        .unwrap_or(0)
}

fn bid(key: &str, shard: usize) -> u64 {
    // A usize always fits; the seed only has to differ from shard to shard.
    xxh3_64_with_seed(key.as_bytes(), u64::try_from(shard).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn keys(names: &BTreeSet<String>) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }

    proptest! {
        #[test]
        fn every_endpoint_has_a_shard_and_no_shard_is_left_out(
            names in prop::collection::btree_set("[a-z0-9]{1,12}", 0..64),
            shards in 1..64_usize,
        ) {
            let assigned = assign(&keys(&names), shards);
            prop_assert_eq!(assigned.len(), names.len());
            let used: BTreeSet<usize> = assigned.iter().copied().collect();
            prop_assert!(used.iter().all(|shard| *shard < shards));
            prop_assert_eq!(used.len(), shards.min(names.len()));
        }

        #[test]
        fn the_order_of_the_endpoints_changes_nothing(
            names in prop::collection::btree_set("[a-z0-9]{1,12}", 1..40),
            shards in 1..12_usize,
        ) {
            let forward = keys(&names);
            let mut backward = forward.clone();
            backward.reverse();
            let mut assigned = assign(&backward, shards);
            assigned.reverse();
            prop_assert_eq!(assign(&forward, shards), assigned);
        }

        #[test]
        fn a_new_shard_takes_its_share_and_nothing_else_moves(
            names in prop::collection::btree_set("[a-z0-9]{4,12}", 200..256),
            shards in 1..8_usize,
        ) {
            let keys = keys(&names);
            let (before, after) = (assign(&keys, shards), assign(&keys, shards + 1));
            let moved: Vec<usize> = (0..keys.len()).filter(|at| before[*at] != after[*at]).collect();
            for at in &moved {
                prop_assert_eq!(after[*at], shards, "an endpoint moved between old shards");
            }
            // The share is a binomial draw; five standard deviations are far beyond any run.
            let share = keys.len() as f64 / (shards + 1) as f64;
            let spread = (share * (1.0 - 1.0 / (shards + 1) as f64)).sqrt();
            prop_assert!((moved.len() as f64 - share).abs() <= 5.0 * spread + 1.0, "{} of {}", moved.len(), keys.len());
        }

        #[test]
        fn an_endpoint_more_moves_no_other(
            names in prop::collection::btree_set("[a-z0-9]{4,12}", 100..200),
            shards in 1..5_usize,
        ) {
            let all = keys(&names);
            let fewer = &all[1..];
            prop_assert_eq!(&assign(&all, shards)[1..], &assign(fewer, shards)[..]);
        }
    }
}
