//! ServiceCIDRs, and the IPAddresses taken from them.

use serde_json::{Value, json};

use super::{
    ErrorList, FieldError, Kind, Strategy, Subresource, addresses,
    at::At,
    columns::{self, AGE, NAME, text},
    meta, names,
    registry::row,
};

pub const SERVICE_CIDR: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::Status],
    columns: &[NAME, text("CIDRs", "spec.cidrs"), AGE],
    strategy: Strategy {
        prepare_create: |new| new["status"] = json!({}),
        validate: |object| meta::check(object, false, names::dns_subdomain, check),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                let [now, then] = [new, old].map(|o| o.get("spec").get("cidrs"));
                if now.len() == then.len() || (then.len() == 1 && now.len() == 2) {
                    now.items().zip(then.items()).for_each(|(a, b)| a.check_immutable(&b, errors));
                } else {
                    now.check_immutable(&then, errors);
                }
            })
        },
        cells: |object, now| {
            let cidrs = object["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let cidrs = cidrs.collect::<Vec<_>>().join(",");
            vec![columns::name(object), cidrs.into(), columns::age(object, now).into()]
        },
        ..Strategy::WITH_STATUS
    },
    ..row(
        "networking.k8s.io",
        "v1",
        "ServiceCIDR",
        "servicecidrs",
        "servicecidr",
        "io.k8s.api.networking.v1.ServiceCIDR",
    )
};

pub const IP_ADDRESS: Kind = Kind {
    short_names: &["ip"],
    namespaced: false,
    columns: &[NAME, text("ParentRef", "spec.parentRef")],
    strategy: Strategy {
        validate: |object| meta::check(object, false, addresses::ip, check_address),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                let [now, then] = [new, old].map(|o| o.get("spec").get("parentRef"));
                if now.value != then.value {
                    let error = now.invalid("field is immutable");
                    errors.push(error.as_struct("Group= Resource= Namespace= Name="));
                }
            })
        },
        cells: |object, _| {
            let parent = &object["spec"]["parentRef"];
            if parent.is_null() {
                return vec![columns::name(object), "<none>".into()];
            }
            let parts = ["resource", "group"].map(|f| parent[f].as_str().unwrap_or_default());
            let resource =
                if parts[1].is_empty() { parts[0].to_owned() } else { parts.join(".") }.to_lowercase();
            let owner = ["namespace", "name"].map(|f| parent[f].as_str().unwrap_or_default());
            let shown =
                owner.iter().filter(|p| !p.is_empty()).fold(resource, |all, part| format!("{all}/{part}"));
            vec![columns::name(object), shown.into()]
        },
        ..Strategy::PLAIN
    },
    ..row(
        "networking.k8s.io",
        "v1",
        "IPAddress",
        "ipaddresses",
        "ipaddress",
        "io.k8s.api.networking.v1.IPAddress",
    )
};

fn check(object: &At<'_>, errors: &mut ErrorList) {
    let cidrs = object.get("spec").get("cidrs");
    if cidrs.is_empty() {
        errors.push(cidrs.required("at least one CIDR required"));
        return;
    }
    if cidrs.len() > 2 {
        errors.push(cidrs.invalid("may only hold up to 2 values"));
        return;
    }
    cidrs.items().for_each(|cidr| cidr.check(addresses::cidr, errors));
    if !addresses::one_of_each_family(cidrs.items().map(|c| c.str())) {
        errors.push(cidrs.invalid(
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        ));
    }
}

fn check_address(object: &At<'_>, errors: &mut ErrorList) {
    let parent = object.get("spec").get("parentRef");
    if !parent.is_set() {
        errors.push(FieldError::required(parent.path, ""));
        return;
    }
    if !parent.get("group").is_empty() {
        parent.get("group").check(names::dns_subdomain, errors);
    }
    for field in ["resource", "name"] {
        parent.get(field).check_required_name(names::path_segment, errors);
    }
    if !parent.get("namespace").is_empty() {
        parent.get("namespace").check(names::path_segment, errors);
    }
}
