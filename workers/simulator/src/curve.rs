//! The load of one meter as a function of time.
//!
//! Active power is a constant plus cosines: of a day and half a day (which together make a morning and an
//! evening peak), of a week, and of minutes, for the unrest of a real load. Their amplitudes sum to less
//! than the constant, so power is always positive; and the integral of a cosine is a sine, so the energy at
//! any time is one formula. Energy thus only rises, needs no memory, and agrees with power to the last watt.
//!
//! Everything else follows from power: I = P / (U x PF) in each phase, S = P / PF, Q = P x tan(acos(PF)).

use std::f64::consts::TAU;

use corrente_record::Timestamp;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The network that all meters of a simulation are connected to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Nominal voltage between a phase and neutral, in V.
    pub voltage: f64,
    /// Nominal frequency, in Hz.
    pub frequency: f64,
}

impl Default for Grid {
    fn default() -> Self {
        Self {
            voltage: 230.0,
            frequency: 50.0,
        }
    }
}

/// How many phases a meter measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phases {
    /// One: its phase carries the whole load.
    One,
    /// Three.
    Three,
}

/// When every counter stood at its first value: 2024-01-01T00:00:00Z.
pub const COMMISSIONED: Timestamp = Timestamp(1_704_067_200_000);

/// A cosine of the load.
struct Wave {
    /// Its amplitude, as a share of the mean.
    share: f64,
    /// Its period in seconds.
    period: f64,
    /// When it peaks, in seconds after midnight UTC; `None` where each meter has its own time.
    peak: Option<f64>,
}

const HOUR: f64 = 3600.0;

/// The shares sum to 0.78, so the load stays between 0.22 and 1.78 of its mean.
const WAVES: [Wave; 6] = [
    Wave {
        share: 0.38,
        period: 24.0 * HOUR,
        peak: Some(15.5 * HOUR),
    },
    Wave {
        share: 0.20,
        period: 12.0 * HOUR,
        peak: Some(8.25 * HOUR),
    },
    Wave {
        share: 0.05,
        period: 168.0 * HOUR,
        peak: None,
    },
    Wave {
        share: 0.07,
        period: 1_037.0,
        peak: None,
    },
    Wave {
        share: 0.05,
        period: 223.0,
        peak: None,
    },
    Wave {
        share: 0.03,
        period: 41.0,
        peak: None,
    },
];

/// One meter's load.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    grid: Grid,
    seed: u64,
    mean_watts: f64,
    power_factor: f64,
    shares: [f64; 3],
    phases: [f64; WAVES.len()],
    first_watt_hours: f64,
}

/// What a meter measures at one moment, in V, A, W, Hz and Wh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Voltage between each phase and neutral.
    pub voltage: [f64; 3],
    /// Current of each phase.
    pub current: [f64; 3],
    /// Active power of each phase.
    pub active: [f64; 3],
    /// Power factor, the same in each phase, 0.92 to 0.98 lagging.
    pub power_factor: f64,
    /// Frequency.
    pub frequency: f64,
    /// Active energy since commissioning.
    pub energy: f64,
    /// Each phase's share of the energy; they sum to 1.
    pub shares: [f64; 3],
}

impl Curve {
    /// The load of the meter of this name; the same in every process.
    #[must_use]
    pub fn new(meter: &str, phases: Phases, grid: Grid) -> Self {
        let seed = xxhash_rust::xxh3::xxh3_64(meter.as_bytes());
        let random = |salt: u64| unit_interval(seed, salt);
        // From a small consumer to a large one, as many between 1 and 2 kW as between 10 and 20.
        let (least, most) = match phases {
            Phases::One => (200.0_f64, 4_000.0_f64),
            Phases::Three => (500.0, 40_000.0),
        };
        let shares = match phases {
            Phases::One => [1.0, 0.0, 0.0],
            Phases::Three => {
                let weights = [1, 2, 3].map(|salt| 0.9 + 0.2 * random(salt));
                let sum: f64 = weights.iter().sum();
                weights.map(|weight| weight / sum)
            }
        };
        // A meter's day may begin up to an hour earlier or later than its neighbour's.
        let shift = (random(4) - 0.5) * 2.0 * HOUR;
        let mut salt = 5;
        let phases = WAVES.map(|wave| {
            salt += 1;
            match wave.peak {
                Some(peak) => -TAU * (peak + shift) / wave.period,
                None => TAU * random(salt),
            }
        });
        Self {
            grid,
            seed,
            mean_watts: least * (most / least).powf(random(12)),
            power_factor: 0.92 + 0.06 * random(13),
            shares,
            phases,
            first_watt_hours: 1_000.0 + (49_000.0 * random(14)).floor(),
        }
    }

    /// What the meter measures at a time. Before [`COMMISSIONED`] it is what it was then.
    #[must_use]
    pub fn at(&self, time: Timestamp) -> Load {
        let millis = time.0.saturating_sub(COMMISSIONED.0).max(0);
        let seconds = millis as f64 / 1000.0;
        let mut power = 1.0;
        let mut integral = seconds;
        for (wave, phase) in WAVES.iter().zip(self.phases) {
            let omega = TAU / wave.period;
            power += wave.share * (omega * seconds + phase).cos();
            integral += wave.share / omega * ((omega * seconds + phase).sin() - phase.sin());
        }
        let watts = self.mean_watts * power;
        // Noise changes once a second, so that the requests of one poll mostly see the same.
        let second = millis.unsigned_abs() / 1000;
        let noise =
            |seed: u64, salt: u64| unit_interval(seed, second.wrapping_mul(8).wrapping_add(salt)) - 0.5;
        // Voltage sags a little under load, and each phase has its own noise.
        let nominal = self.grid.voltage;
        let voltage =
            [0, 1, 2].map(|phase| nominal * (1.005 - 0.008 * power + 0.008 * noise(self.seed, phase)));
        let active = self.shares.map(|share| watts * share);
        let mut current = active;
        for (current, voltage) in current.iter_mut().zip(voltage) {
            *current /= voltage * self.power_factor;
        }
        // The frequency is the grid's: all meters see the same.
        let frequency =
            self.grid.frequency * (1.0 + 0.0006 * (TAU * seconds / 613.0).sin() + 0.0004 * noise(0, 3));
        Load {
            voltage,
            current,
            active,
            power_factor: self.power_factor,
            frequency,
            energy: self.first_watt_hours + self.mean_watts * integral / HOUR,
            shares: self.shares,
        }
    }

    /// The number that makes this meter different from the others.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

/// A number from 0 to below 1 that follows from seed and salt alone.
fn unit_interval(seed: u64, salt: u64) -> f64 {
    let bits = xxh3_64_with_seed(&salt.to_le_bytes(), seed) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400_000;

    #[test]
    fn peaks_in_the_morning_and_in_the_evening() {
        let curve = Curve::new("feeder-12", Phases::Three, Grid::default());
        // The mean of each hour of the day over a year, which is free of week and minutes.
        let hours: Vec<f64> = (0..24)
            .map(|hour| {
                let times = (0..365).map(|day| COMMISSIONED.0 + day * DAY + hour * 3_600_000 + day * 9_000);
                times
                    .map(|t| curve.at(Timestamp(t)).active.iter().sum::<f64>())
                    .sum::<f64>()
                    / 365.0
            })
            .collect();
        let peaks: Vec<usize> = (0..24)
            .filter(|&h| hours[h] > hours[(h + 23) % 24] && hours[h] >= hours[(h + 1) % 24])
            .collect();
        assert_eq!(peaks.len(), 2, "{hours:?}");
        assert!(
            (7..12).contains(&peaks[0]) && (17..22).contains(&peaks[1]),
            "{peaks:?}"
        );
    }

    #[test]
    fn one_phase_carries_all_of_a_single_phase_meter() {
        let load = Curve::new("m", Phases::One, Grid::default()).at(Timestamp(COMMISSIONED.0 + DAY));
        assert!(load.active[0] > 0.0);
        assert_eq!((load.active[1], load.current[2]), (0.0, 0.0));
    }

    #[test]
    fn meters_differ_and_processes_do_not() {
        let at =
            |name: &str| Curve::new(name, Phases::Three, Grid::default()).at(Timestamp(COMMISSIONED.0 + DAY));
        assert_eq!(at("a"), at("a"));
        assert_ne!(at("a").energy, at("b").energy);
        assert_eq!(at("a").frequency, at("b").frequency);
    }

    proptest! {
        #[test]
        fn the_load_is_plausible_and_energy_is_its_integral(name in "[a-z0-9-]{1,12}", time in 0i64..3000 * DAY) {
            let curve = Curve::new(&name, Phases::Three, Grid::default());
            let time = COMMISSIONED.0 + time;
            let load = curve.at(Timestamp(time));
            let watts: f64 = load.active.iter().sum();
            prop_assert!((100.0..80_000.0).contains(&watts), "{}", watts);
            prop_assert!(load.voltage.iter().all(|u| (220.0..240.0).contains(u)), "{:?}", load.voltage);
            prop_assert!((49.9..50.1).contains(&load.frequency));
            for phase in 0..3 {
                let product = load.voltage[phase] * load.current[phase] * load.power_factor;
                prop_assert!((product - load.active[phase]).abs() < 1e-6 * product);
            }
            // Over h seconds the mean of both ends differs from the mean power by at most h^2/12 of the greatest
            // second derivative: the trapezoidal rule's error.
            let later = curve.at(Timestamp(time + 10_000));
            let mean = (watts + later.active.iter().sum::<f64>()) / 2.0;
            let from_energy = (later.energy - load.energy) * 360.0;
            let bend: f64 = WAVES.iter().map(|wave| wave.share * (TAU / wave.period).powi(2)).sum();
            let bound = 10.0 * 10.0 / 12.0 * bend * curve.mean_watts;
            prop_assert!((mean - from_energy).abs() <= bound + 1e-6 * mean, "{} {}", mean, from_energy);
            prop_assert!(curve.at(Timestamp(time + 1)).energy >= load.energy);
        }
    }
}
