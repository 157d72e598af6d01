//! Units of measurement, and the factors between those of one quantity.
//!
//! Sources: *The International System of Units*, 9th edition (BIPM 2019): units, prefixes, and in table 8 those that may
//! be used with it: hour = 3600 s, litre = 1e-3 m3, bar... ; NIST Special Publication 811 (2008), appendix B.8, for
//! the rest: cubic foot = 2.831 684 659 2e-2 m3, US gallon = 3.785 411 784e-3 m3, psi = 6.894 757 293 168e3 Pa,
//! Btu(IT) = 1.055 055 852 62e3 J, degree Fahrenheit: (F - 32) / 1.8 degrees Celsius. var and VA are IEC 60050-131's.
//!
//! Reactive and apparent power are quantities of their own: var is never converted to W.

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    Energy,
    Power,
    ReactivePower,
    ReactiveEnergy,
    ApparentPower,
    ApparentEnergy,
    Voltage,
    Current,
    Charge,
    Resistance,
    Frequency,
    Temperature,
    Volume,
    VolumeFlow,
    Pressure,
    Mass,
    Length,
    Time,
    Ratio,
    Angle,
}

/// A unit: its quantity, and how its values become those of the quantity's first unit: `value * factor + offset`.
type Unit = (&'static str, Quantity, f64, f64);

const JOULES_OF_A_WATT_HOUR: f64 = 3600.0;
const CUBIC_METRES_OF_A_GALLON: f64 = 3.785_411_784e-3;
const CUBIC_METRES_OF_A_CUBIC_FOOT: f64 = 2.831_684_659_2e-2;

/// Every unit that can be converted.
const UNITS: [Unit; 74] = {
    use Quantity as Q;
    [
        ("Wh", Q::Energy, 1.0, 0.0),
        ("kWh", Q::Energy, 1e3, 0.0),
        ("MWh", Q::Energy, 1e6, 0.0),
        ("GWh", Q::Energy, 1e9, 0.0),
        ("J", Q::Energy, 1.0 / JOULES_OF_A_WATT_HOUR, 0.0),
        ("kJ", Q::Energy, 1e3 / JOULES_OF_A_WATT_HOUR, 0.0),
        ("MJ", Q::Energy, 1e6 / JOULES_OF_A_WATT_HOUR, 0.0),
        ("GJ", Q::Energy, 1e9 / JOULES_OF_A_WATT_HOUR, 0.0),
        ("Btu", Q::Energy, 1_055.055_852_62 / JOULES_OF_A_WATT_HOUR, 0.0),
        ("W", Q::Power, 1.0, 0.0),
        ("mW", Q::Power, 1e-3, 0.0),
        ("kW", Q::Power, 1e3, 0.0),
        ("MW", Q::Power, 1e6, 0.0),
        ("GW", Q::Power, 1e9, 0.0),
        ("var", Q::ReactivePower, 1.0, 0.0),
        ("kvar", Q::ReactivePower, 1e3, 0.0),
        ("Mvar", Q::ReactivePower, 1e6, 0.0),
        ("varh", Q::ReactiveEnergy, 1.0, 0.0),
        ("kvarh", Q::ReactiveEnergy, 1e3, 0.0),
        ("Mvarh", Q::ReactiveEnergy, 1e6, 0.0),
        ("VA", Q::ApparentPower, 1.0, 0.0),
        ("kVA", Q::ApparentPower, 1e3, 0.0),
        ("MVA", Q::ApparentPower, 1e6, 0.0),
        ("VAh", Q::ApparentEnergy, 1.0, 0.0),
        ("kVAh", Q::ApparentEnergy, 1e3, 0.0),
        ("MVAh", Q::ApparentEnergy, 1e6, 0.0),
        ("V", Q::Voltage, 1.0, 0.0),
        ("mV", Q::Voltage, 1e-3, 0.0),
        ("kV", Q::Voltage, 1e3, 0.0),
        ("A", Q::Current, 1.0, 0.0),
        ("mA", Q::Current, 1e-3, 0.0),
        ("kA", Q::Current, 1e3, 0.0),
        ("Ah", Q::Charge, 1.0, 0.0),
        ("kAh", Q::Charge, 1e3, 0.0),
        ("Ohm", Q::Resistance, 1.0, 0.0),
        ("mOhm", Q::Resistance, 1e-3, 0.0),
        ("kOhm", Q::Resistance, 1e3, 0.0),
        ("Hz", Q::Frequency, 1.0, 0.0),
        ("mHz", Q::Frequency, 1e-3, 0.0),
        ("kHz", Q::Frequency, 1e3, 0.0),
        ("rpm", Q::Frequency, 1.0 / 60.0, 0.0),
        ("degC", Q::Temperature, 1.0, 0.0),
        ("degF", Q::Temperature, 1.0 / 1.8, -32.0 / 1.8),
        ("K", Q::Temperature, 1.0, -273.15),
        ("m3", Q::Volume, 1.0, 0.0),
        ("l", Q::Volume, 1e-3, 0.0),
        ("gal", Q::Volume, CUBIC_METRES_OF_A_GALLON, 0.0),
        ("ft3", Q::Volume, CUBIC_METRES_OF_A_CUBIC_FOOT, 0.0),
        ("m3/h", Q::VolumeFlow, 1.0, 0.0),
        ("m3/s", Q::VolumeFlow, 3600.0, 0.0),
        ("l/h", Q::VolumeFlow, 1e-3, 0.0),
        ("l/min", Q::VolumeFlow, 0.06, 0.0),
        ("l/s", Q::VolumeFlow, 3.6, 0.0),
        ("gal/min", Q::VolumeFlow, CUBIC_METRES_OF_A_GALLON * 60.0, 0.0),
        ("Pa", Q::Pressure, 1.0, 0.0),
        ("kPa", Q::Pressure, 1e3, 0.0),
        ("MPa", Q::Pressure, 1e6, 0.0),
        ("mbar", Q::Pressure, 1e2, 0.0),
        ("bar", Q::Pressure, 1e5, 0.0),
        ("psi", Q::Pressure, 6_894.757_293_168, 0.0),
        ("kg", Q::Mass, 1.0, 0.0),
        ("g", Q::Mass, 1e-3, 0.0),
        ("t", Q::Mass, 1e3, 0.0),
        ("m", Q::Length, 1.0, 0.0),
        ("mm", Q::Length, 1e-3, 0.0),
        ("km", Q::Length, 1e3, 0.0),
        ("s", Q::Time, 1.0, 0.0),
        ("ms", Q::Time, 1e-3, 0.0),
        ("min", Q::Time, 60.0, 0.0),
        ("h", Q::Time, 3600.0, 0.0),
        ("1", Q::Ratio, 1.0, 0.0),
        ("%", Q::Ratio, 1e-2, 0.0),
        ("rad", Q::Angle, 1.0, 0.0),
        ("deg", Q::Angle, std::f64::consts::PI / 180.0, 0.0),
    ]
};

/// Other ways to write a unit.
const ALSO: [(&str, &str); 16] = [
    ("°C", "degC"),
    ("C", "degC"),
    ("°F", "degF"),
    ("F", "degF"),
    ("°", "deg"),
    ("VAr", "var"),
    ("VAR", "var"),
    ("kVAr", "kvar"),
    ("kVAR", "kvar"),
    ("VArh", "varh"),
    ("kVArh", "kvarh"),
    ("kVARh", "kvarh"),
    ("m³", "m3"),
    ("m³/h", "m3/h"),
    ("Ω", "Ohm"),
    ("L", "l"),
];

/// How values of one unit become those of another: `value * factor + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conversion {
    /// What the value is multiplied with.
    pub factor: f64,
    /// What is added after that.
    pub offset: f64,
}

fn find(name: &str) -> Option<&'static Unit> {
    let name = ALSO
        .iter()
        .find(|(also, _)| *also == name)
        .map_or(name, |(_, name)| name);
    UNITS.iter().find(|(unit, ..)| *unit == name)
}

/// How to convert from one unit to another.
///
/// # Errors
/// A sentence: which unit is not known, or that the two do not measure the same.
pub fn conversion(from: &str, to: &str) -> Result<Conversion, String> {
    let unit = |name: &str| {
        find(name).ok_or_else(|| {
            let names = UNITS.iter().map(|(name, ..)| *name);
            let known: Vec<&str> = names.collect();
            let near = known
                .iter()
                .find(|known| known.eq_ignore_ascii_case(name))
                .map_or_else(
                    || format!("write one of {}", known.join(", ")),
                    |near| format!("did you mean \"{near}\"?"),
                );
            format!("there is no unit \"{name}\" to convert: {near}")
        })
    };
    let ((_, from_quantity, from_factor, from_offset), (_, to_quantity, to_factor, to_offset)) =
        (unit(from)?, unit(to)?);
    if from_quantity != to_quantity {
        return Err(format!(
            "{from} and {to} do not measure the same: there is no factor between them"
        ));
    }
    Ok(Conversion {
        factor: from_factor / to_factor,
        offset: (from_offset - to_offset) / to_factor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_as_the_sources_say() {
        for (value, from, to, expected) in [
            (1.5, "MWh", "kWh", 1500.0),
            (3.6, "MJ", "kWh", 1.0),
            (1.0, "GJ", "kWh", 277.777_777_777_777_8),
            (2500.0, "W", "kW", 2.5),
            (1.0, "kvarh", "varh", 1000.0),
            (100.0, "degC", "degF", 212.0),
            (-40.0, "°F", "°C", -40.0),
            (300.0, "K", "degC", 26.85),
            (0.0, "degC", "K", 273.15),
            (10.0, "l/min", "m3/h", 0.6),
            (1.0, "bar", "psi", 14.503_773_773),
            (1.0, "m³", "gal", 264.172_052_36),
            (50.0, "%", "1", 0.5),
            (180.0, "deg", "rad", std::f64::consts::PI),
            (1500.0, "rpm", "Hz", 25.0),
        ] {
            let conversion = conversion(from, to).unwrap();
            let got = value * conversion.factor + conversion.offset;
            assert!(
                (got - expected).abs() < 1e-8 * expected.abs().max(1.0),
                "{value} {from} = {got} {to}"
            );
        }
    }

    #[test]
    fn there_and_back_again() {
        for (from, quantity, ..) in UNITS {
            for (to, other, ..) in UNITS {
                match (quantity == other, conversion(from, to), conversion(to, from)) {
                    (true, Ok(there), Ok(back)) => {
                        let value = (12.5 * there.factor + there.offset) * back.factor + back.offset;
                        assert!((value - 12.5).abs() < 1e-9, "{from} {to}: {value}");
                    }
                    (false, Err(why), Err(_)) => assert!(why.contains("do not measure the same")),
                    (_, there, _) => panic!("{from} {to}: {there:?}"),
                }
            }
        }
        for (also, name) in ALSO {
            assert!(
                find(name).is_some() && UNITS.iter().all(|(unit, ..)| *unit != also),
                "{also}"
            );
        }
        assert!(
            conversion("kwh", "Wh")
                .unwrap_err()
                .contains("did you mean \"kWh\"")
        );
        assert!(
            conversion("furlong", "m")
                .unwrap_err()
                .contains("write one of Wh, kWh")
        );
    }
}
