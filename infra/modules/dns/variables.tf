variable "name" {
  type = string
}

variable "region" {
  type = string
}

variable "network" {
  type = string
}

variable "subnetwork" {
  description = "Where the broker's internal address is."
  type        = string
}

variable "workload_pool" {
  description = "Whose Kubernetes accounts may be Google's."
  type        = string
}

variable "domain" {
  type = string
}

variable "host" {
  description = "The public name, within the domain."
  type        = string

  validation {
    condition     = var.host == var.domain || endswith(var.host, ".${var.domain}")
    error_message = "host must be within domain."
  }
}
