//! Records: any bytes are read or refused, and what is read can be written in every format and read again.
#![no_main]

use std::sync::{Arc, LazyLock};

use corrente_config::PollerConfig;
use corrente_poller::encode::{EncodeError, Encoded, Encoder, SchemaId};
use corrente_record::Record;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

static CONFIGS: LazyLock<[PollerConfig; 3]> =
    LazyLock::new(|| ["connect-json", "avro", "protobuf"].map(config));

fn config(format: &str) -> PollerConfig {
    let mut output = json!({"bootstrapServers": ["b:9092"], "topic": "meters", "format": format});
    if format != "connect-json" {
        output["schemaRegistry"] = json!({"url": "http://registry:8081"});
    }
    serde_json::from_value(json!({
        "namespace": "n", "name": "p", "shard": 0, "interval": "1s", "timeout": "1s", "retries": 0,
        "maps": {}, "endpoints": [], "output": output,
        "buffer": {"maxBytes": 16_777_216, "syncInterval": "1s"},
    }))
    .expect("this is a configuration")
}

fuzz_target!(|data: &[u8]| {
    let Ok(record) = Record::parse(data) else {
        return;
    };
    let stored: Arc<[u8]> = data.into();
    for config in &*CONFIGS {
        let Some(encoded) = encode(&mut Encoder::new(config), &stored) else {
            continue;
        };
        match Record::parse(&encoded.payload) {
            Ok(again) => assert_eq!(
                (&again.meter, again.seq, again.slot, again.ts, again.fields.len()),
                (
                    &record.meter,
                    record.seq,
                    record.slot,
                    record.ts,
                    record.fields.len()
                )
            ),
            Err(error) => assert_eq!(encoded.payload.first(), Some(&0), "{error}"),
        }
    }
});

fn encode(encoder: &mut Encoder, stored: &Arc<[u8]>) -> Option<Encoded> {
    match encoder.encode(stored) {
        Ok(encoded) => Some(encoded),
        Err(EncodeError::Unregistered(request)) => {
            encoder.registered(&request, SchemaId(7));
            encoder.encode(stored).ok()
        }
        Err(_) => None,
    }
}
